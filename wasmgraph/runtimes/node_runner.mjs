// The process behind runtimes/node.py: a graph under V8, spoken to through its standard streams.
// A message is a line of JSON and, after it, as many bytes as its "bytes" says.

import { readFileSync, readSync, writeSync } from 'node:fs';
import { load } from '../web/loader.mjs';

function readExactly(buffer) {
  let filled = 0;
  while (filled < buffer.length) {
    const count = readSync(0, buffer, filled, buffer.length - filled);
    if (count === 0) process.exit(0); // the parent is gone
    filled += count;
  }
  return buffer;
}

function readMessage() {
  const line = [];
  const byte = Buffer.alloc(1);
  while (readExactly(byte)[0] !== 10) line.push(byte[0]);
  const message = JSON.parse(Buffer.from(line).toString());
  return { ...message, payload: readExactly(Buffer.alloc(message.bytes ?? 0)) };
}

function writeAll(buffer) {
  let written = 0;
  while (written < buffer.length) written += writeSync(1, buffer, written);
}

function reply(message, parts = []) {
  const bytes = parts.reduce((sum, part) => sum + part.byteLength, 0);
  writeAll(Buffer.from(`${JSON.stringify({ ...message, bytes })}\n`));
  for (const part of parts) writeAll(new Uint8Array(part.buffer, part.byteOffset, part.byteLength));
}

let graph;

const commands = {
  async load({ path }) {
    graph = await load(readFileSync(path));
    reply({ node: process.versions.node, v8: process.versions.v8 });
  },
  run({ payload }) {
    let offset = 0;
    for (const tensor of graph.inputs) {
      const view = graph.view(tensor);
      const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
      bytes.set(payload.subarray(offset, offset + bytes.length));
      offset += bytes.length;
    }
    graph.call();
    reply({}, graph.outputs.map((tensor) => graph.view(tensor)));
  },
  step({ index }) {
    graph.step(index);
    reply({});
  },
};

for (;;) {
  const message = readMessage();
  try {
    await commands[message.command](message);
  } catch (error) {
    reply({ error: `${error.name}: ${error.message}` });
  }
}
