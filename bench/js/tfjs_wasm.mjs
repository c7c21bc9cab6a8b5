// TensorFlow.js on its WebAssembly backend: the steps that tfjs.py wrote, on fused kernels, NHWC.

import { createRequire } from 'node:module';
import path from 'node:path';
import { serve } from '../../wasmgraph/runtimes/node_messages.mjs';

const require = createRequire(import.meta.url);
const tf = require('@tensorflow/tfjs-core');
const wasm = require('@tensorflow/tfjs-backend-wasm');

const STEPS = {
  conv2d: ([x, filter, bias], a) =>
    tf.fused.conv2d({ x, filter, bias, strides: a.strides, pad: a.pad, dilations: a.dilations, activation: a.activation }),
  depthwise: ([x, filter, bias], a) =>
    tf.fused.depthwiseConv2d({ x, filter, bias, strides: a.strides, pad: a.pad, dilations: a.dilations, activation: a.activation }),
  matmul: ([a, b, bias], { activation }) => tf.fused.matMul({ a, b, bias, activation }),
  max_pool: ([x], a) => tf.maxPool(x, a.size, a.strides, a.pad),
  avg_pool: ([x], a) => tf.avgPool(x, a.size, a.strides, a.pad),
  mean: ([x]) => tf.mean(x, [1, 2], true),
  add: ([a, b]) => tf.add(a, b),
  mul: ([a, b]) => tf.mul(a, b),
  relu: ([x]) => tf.relu(x),
  sigmoid: ([x]) => tf.sigmoid(x),
  softmax: ([x]) => tf.softmax(x),
  concat: (tensors, { axis }) => tf.concat(tensors, axis),
  transpose: ([x], { perm }) => tf.transpose(x, perm),
  reshape: ([x], { shape }) => tf.reshape(x, shape),
};

const constants = {};
let graph;

await serve({
  async load({ payload, constants: placed, ...rest }) {
    wasm.setWasmPaths(path.join(path.dirname(require.resolve('@tensorflow/tfjs-backend-wasm')), path.sep));
    await tf.setBackend('wasm');
    await tf.ready();
    if (!(await tf.env().getAsync('WASM_HAS_SIMD_SUPPORT'))) throw new Error('its SIMD build does not run here');
    for (const { name, shape, offset } of placed) {
      const size = shape.reduce((product, extent) => product * extent, 1);
      constants[name] = tf.tensor(new Float32Array(payload.buffer, payload.byteOffset + offset, size), shape);
    }
    graph = rest;
  },
  run({ payload }) {
    const parts = tf.tidy(() => {
      const values = { ...constants };
      let offset = 0;
      for (const { name, shape } of graph.inputs) {
        const size = shape.reduce((product, extent) => product * extent, 1);
        values[name] = tf.tensor(new Float32Array(payload.buffer, payload.byteOffset + offset, size), shape);
        offset += 4 * size;
      }
      for (const { step, inputs, output, ...attributes } of graph.steps) {
        values[output] = STEPS[step](inputs.map((name) => values[name]), attributes);
        for (const name of attributes.dead) values[name].dispose();
      }
      return graph.outputs.map((name) => values[name].dataSync());
    });
    return { parts };
  },
});
