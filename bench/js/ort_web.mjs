// onnxruntime-web on the CPU: its SIMD build, the threads it is told.

import { readFileSync } from 'node:fs';
import ort from 'onnxruntime-web';
import { serve } from '../../wasmgraph/runtimes/node_messages.mjs';

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array, bool: Uint8Array };
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
  async run({ shapes, payload }) {
    const feeds = {};
    let offset = payload.byteOffset;
    for (const [index, { name, type }] of metadata.entries()) {
      const shape = shapes[index];
      const size = shape.reduce((product, extent) => product * extent, 1);
      const Elements = ARRAYS[type];
      if (!Elements) throw new Error(`this peer feeds ${Object.keys(ARRAYS).join(', ')}; ${name} is ${type}`);
      const end = offset + size * Elements.BYTES_PER_ELEMENT;
      const aligned = offset % Elements.BYTES_PER_ELEMENT === 0;
      const data = aligned
        ? new Elements(payload.buffer, offset, size)
        : new Elements(payload.buffer.slice(offset, end));
      feeds[name] = new ort.Tensor(type, data, shape);
      offset = end;
    }
    const results = await session.run(feeds);
    const outputs = session.outputNames.map((name) => results[name]);
    return { shapes: outputs.map(({ dims }) => dims), parts: outputs.map(({ data }) => data) };
  },
});
