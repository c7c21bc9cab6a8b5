// The process behind runtimes/node.py: a graph under V8.

import { readFileSync } from 'node:fs';
import { load } from '../web/loader.mjs';
import { serve } from './node_messages.mjs';

let graph;

await serve({
  async load({ path }) {
    graph = await load(readFileSync(path));
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
    return { parts: graph.outputs.map((tensor) => graph.view(tensor)) };
  },
  step({ index }) {
    graph.step(index);
  },
});
