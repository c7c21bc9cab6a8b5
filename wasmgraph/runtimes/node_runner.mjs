// The child process of runtimes/node.py: runs a graph in V8.

import { readFileSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { load } from '../web/loader.mjs';
import { serve } from './node_messages.mjs';

let graph;

function start(workerData) {
  const worker = new Worker(new URL('./node_worker.mjs', import.meta.url), { workerData });
  return new Promise((resolve, reject) => {
    worker.once('message', () => resolve(worker));
    worker.once('error', reject);
  });
}

await serve({
  async load({ path, threads, params }) {
    graph = await load(readFileSync(path), { threads, start, params: params && readFileSync(params) });
  },
  run({ payload, dims }) {
    let offset = 0;
    if (dims) graph.set(dims);
    for (const tensor of graph.inputs) {
      const view = graph.view(tensor);
      const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
      bytes.set(payload.subarray(offset, offset + bytes.length));
      offset += bytes.length;
    }
    graph.call();
    return { dims: graph.values, parts: graph.outputs.map((tensor) => graph.view(tensor).slice()) };
  },
  step({ index }) {
    graph.step(index);
  },
});
