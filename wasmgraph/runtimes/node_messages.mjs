// The protocol between runtimes/node.py and its child process, over standard streams: a message is a line
// of JSON, followed by as many bytes as its field "bytes" says.

import { readSync, writeSync } from 'node:fs';

function readExactly(buffer) {
  let filled = 0;
  while (filled < buffer.length) {
    const count = readSync(0, buffer, filled, buffer.length - filled);
    if (count === 0) process.exit(0); // the parent has ended
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

/**
 * Answer messages for ever. Each command gets its message and returns the answer. The answer's "parts",
 * which are typed arrays, follow it as bytes. An error that a command throws becomes the answer's "error".
 */
export async function serve(commands) {
  for (;;) {
    const message = readMessage();
    try {
      const { parts = [], ...answer } = (await commands[message.command](message)) ?? {};
      const bytes = parts.reduce((sum, part) => sum + part.byteLength, 0);
      writeAll(Buffer.from(`${JSON.stringify({ ...answer, bytes })}\n`));
      for (const part of parts) writeAll(new Uint8Array(part.buffer, part.byteOffset, part.byteLength));
    } catch (error) {
      writeAll(Buffer.from(`${JSON.stringify({ error: `${error.name}: ${error.message}`, bytes: 0 })}\n`));
    }
  }
}
