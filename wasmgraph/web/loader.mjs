// Loads a WASM graph and runs it: in browsers, and in anything else that has WebAssembly.

const VIEWS = {
  float32: Float32Array,
  float64: Float64Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  float16: Uint16Array, // its bits
};

/** A loaded graph. Not for concurrent use: load one for each worker. */
export class Graph {
  #exports;

  constructor(module, manifest, instance) {
    this.#exports = instance.exports;
    this.manifest = manifest;
    this.module = module;
  }

  /** Names, shapes and dtypes of what the graph takes and gives. */
  get inputs() {
    return this.manifest.inputs;
  }

  get outputs() {
    return this.manifest.outputs;
  }

  /** The place of a tensor in linear memory; do not keep it. */
  view(tensor) {
    const length = tensor.shape.reduce((product, size) => product * size, 1);
    return new VIEWS[tensor.dtype](this.#exports.memory.buffer, tensor.offset, length);
  }

  /**
   * Run one inference.
   * @param {Object} feeds by input name, a typed array of exactly its elements
   * @returns {Object} by output name, a typed array that the caller owns
   */
  run(feeds) {
    for (const tensor of this.inputs) {
      const view = this.view(tensor);
      const given = feeds[tensor.name];
      if (given?.constructor !== view.constructor || given.length !== view.length) {
        const found = given ? `${given.constructor.name} of ${given.length}` : 'nothing';
        throw new TypeError(
          `input "${tensor.name}": expected ${view.constructor.name} of ${view.length}, got ${found}`,
        );
      }
      view.set(given);
    }
    this.call();
    return Object.fromEntries(this.outputs.map((tensor) => [tensor.name, this.view(tensor).slice()]));
  }

  /** Run the graph on what its inputs hold. */
  call() {
    const error = this.#exports.wasmgraph_run();
    if (error) throw new Error(`wasmgraph_run returned ${error}`);
  }

  /** Run one call of the plan on what its inputs hold, for profiling. */
  step(index) {
    const error = this.#exports.wasmgraph_step(index);
    if (error) throw new Error(`wasmgraph_step(${index}) returned ${error}`);
  }
}

/**
 * Load a graph.
 * @param {BufferSource|WebAssembly.Module} source the artifact's bytes, or a module made of them
 * @returns {Promise<Graph>}
 */
export async function load(source) {
  const module = source instanceof WebAssembly.Module ? source : await WebAssembly.compile(source);
  const [section] = WebAssembly.Module.customSections(module, 'wasmgraph');
  if (!section) throw new TypeError('this module is no wasm graph: it has no "wasmgraph" section');
  const manifest = JSON.parse(new TextDecoder().decode(section));
  return new Graph(module, manifest, await WebAssembly.instantiate(module, {}));
}
