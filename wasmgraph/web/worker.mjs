// A thread of a WASM graph: a separate instance on the graph's shared memory, with its own stack.

import { parameterFile } from './loader.mjs';

const encoder = new TextEncoder();

/**
 * Run the graph's worker until the graph is closed. This blocks the thread.
 * @param {SharedArrayBuffer} trap where to store the message of a trap: its length, then its bytes
 */
export function serve({ module, memory, stackTop, trap }, ready) {
  // The thread that loaded the graph reads the parameters, so this file is empty.
  const wasi = parameterFile(new Uint8Array(), () => memory);
  const { exports } = new WebAssembly.Instance(module, { env: { memory }, wasi_snapshot_preview1: wasi });
  exports.wasmgraph_init();
  exports.__stack_pointer.value = stackTop;
  ready();
  for (;;) {
    try {
      exports.wasmgraph_worker();
      return;
    } catch (error) {
      const text = encoder.encode(error.message).subarray(0, trap.byteLength - 4);
      new Uint8Array(trap, 4).set(text);
      new Int32Array(trap, 0, 1)[0] = text.length;
      exports.__stack_pointer.value = stackTop;
      exports.wasmgraph_fail();
    }
  }
}

if (typeof WorkerGlobalScope !== 'undefined' && self instanceof WorkerGlobalScope) {
  self.onmessage = ({ data }) => serve(data, () => self.postMessage('ready'));
}
