// onnxruntime-web on the CPU: its SIMD build, the threads it is told.

import { readFileSync } from 'node:fs';
import ort from 'onnxruntime-web';
import { serve } from '../../wasmgraph/runtimes/node_messages.mjs';

let session;
let metadata;

function describe(tensors) {
  return tensors.map(({ name, type, shape }) => ({ name, dtype: type, shape }));
}

await serve({
  async load({ path, threads }) {
    ort.env.wasm.numThreads = threads;
    session = await ort.InferenceSession.create(readFileSync(path), {
      executionProviders: ['wasm'],
      graphOptimizationLevel: 'all',
    });
    metadata = session.inputMetadata;
    return { inputs: describe(metadata), outputs: describe(session.outputMetadata) };
  },
  async run({ payload }) {
    const feeds = {};
    let offset = 0;
    for (const { name, shape } of metadata) {
      const size = shape.reduce((product, extent) => product * extent, 1);
      const data = new Float32Array(payload.buffer, payload.byteOffset + offset, size);
      feeds[name] = new ort.Tensor('float32', data, shape);
      offset += 4 * size;
    }
    const results = await session.run(feeds);
    return { parts: session.outputNames.map((name) => results[name].data) };
  },
});
