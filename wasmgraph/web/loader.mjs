// Loads and runs a WASM graph, in browsers and in any other JavaScript engine that has WebAssembly.

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
  float16: Uint16Array, // the bits of each number
};

const MISSING_PARAMS = [
  '',
  'cannot be opened',
  'cannot be read',
  'have another length than those that the module was compiled with',
  'have another content than those that the module was compiled with',
];
const FIRST_DIM = 16; // the result if the first of the manifest's dims is out of its bounds
const FIRST_CHECK = 256; // the result of wasmgraph_run if the first of the manifest's checks fails
const PAGE = 65536;
const TRAP_BYTES = 1024;

/** An index that depends on the inputs is out of range. There are no outputs; the graph can run again. */
export class IndexRangeError extends RangeError {
  name = 'IndexRangeError';
}

/** An input or a dimension is not what the graph takes. Nothing was computed; the graph can run. */
export class FeedError extends TypeError {
  name = 'FeedError';
}

const OPERATIONS = {
  '+': (a, b) => a + b,
  '-': (a, b) => a - b,
  '*': (a, b) => a * b,
  '//': (a, b) => Math.floor(a / b),
  min: Math.min,
  max: Math.max,
};

/** The number that a size is: a number, the name of a dimension, or [operator, size, size]. */
export function evaluate(size, values) {
  if (typeof size === 'number') return size;
  if (typeof size === 'string') return values[size];
  const [operator, left, right] = size;
  return OPERATIONS[operator](evaluate(left, values), evaluate(right, values));
}

/** The names of dimensions in a size. */
function names(size) {
  if (typeof size === 'string') return [size];
  return typeof size === 'number' ? [] : size.slice(1).flatMap(names);
}

/** A loaded graph. It belongs to the thread that loaded it; load it in every thread that runs inferences.
*/ export class Graph {
  #exports;
  #memory;
  #renew;
  #stackTop;
  #trap;
  #workers;
  #values;

  /**
   * @param {WebAssembly.Instance} instance of the graph
   * @param {WebAssembly.Memory} memory of the graph
   * @param {Function} threads.renew returns a new instance after a trap; only for graphs without threads
   * @param {SharedArrayBuffer} threads.trap where workers store the message of a trap
   * @param {Array} threads.workers workers, each of which `terminate()` ends
   */
  constructor(module, manifest, instance, memory, { renew, trap, workers = [] }) {
    this.#exports = instance.exports;
    this.#memory = memory;
    this.#renew = renew;
    this.#stackTop = instance.exports.__stack_pointer?.value;
    this.#trap = trap;
    this.#workers = workers;
    this.#values = Object.fromEntries((manifest.dims ?? []).map(({ name, most }) => [name, most]));
    this.manifest = manifest;
    this.module = module;
  }

  /** The graph's open dimensions that its caller gives: name, the least and the most that each may be. */
  get dims() {
    return (this.manifest.dims ?? []).filter(({ computed }) => !computed);
  }

  /** The values of all dimensions in the last run, by name. */
  get values() {
    return { ...this.#values };
  }

  /** The shape of a tensor in the last run. */
  shape(tensor) {
    return tensor.shape.map((size) => evaluate(size, this.#values));
  }

  /** Set the values of all open dimensions for the next run: an object by name. */
  set(values) {
    for (const { name, least, most, offset } of this.dims) {
      const value = values[name];
      if (!Number.isInteger(value) || value < least || value > most) {
        throw new FeedError(`the dimension "${name}" is ${value}; this graph was compiled for ${least} to ${most}`);
      }
      new Int32Array(this.#memory.buffer, offset, 1)[0] = value;
    }
    this.#values = { ...this.#values, ...values };
  }

  /** The values of open dimensions: those that are given, and what the lengths of the feeds say. */
  #valuesOf(feeds, given) {
    const values = { ...given };
    for (const name of Object.keys(values)) {
      if (!this.dims.some((dim) => dim.name === name)) throw new FeedError(`no dimension is called "${name}"`);
    }
    for (let found = true; found; ) {
      found = false;
      for (const { name, shape } of this.inputs) {
        const unknown = [...new Set(shape.flatMap(names))].filter((dim) => !(dim in values));
        if (unknown.length !== 1 || !feeds[name]) continue;
        const count = (value) =>
          shape.reduce((product, size) => product * evaluate(size, { ...values, [unknown[0]]: value }), 1);
        const { least, most } = this.dims.find((dim) => dim.name === unknown[0]);
        // The number of elements grows with each dimension: look for the value between its bounds.
        let [low, high] = [least, most];
        while (low < high) {
          const middle = Math.floor((low + high) / 2);
          if (count(middle) < feeds[name].length) low = middle + 1;
          else high = middle;
        }
        if (count(low) !== feeds[name].length) {
          throw new FeedError(
            `input "${name}" has ${feeds[name].length} elements, for which there is no "${unknown[0]}" from ${least} to ${most}`,
          );
        }
        values[unknown[0]] = low;
        found = true;
      }
    }
    const missing = this.dims.find(({ name }) => !(name in values));
    if (missing) throw new FeedError(`give the dimension "${missing.name}": run(feeds, { dims: { ${missing.name}: … } })`);
    return values;
  }

  /** Names, shapes and dtypes of the graph's inputs. */
  get inputs() {
    return this.manifest.inputs;
  }

  get outputs() {
    return this.manifest.outputs;
  }

  /** A view of a tensor in linear memory. Do not keep it: a later call may replace the memory. */
  view(tensor) {
    if (!this.#memory) throw new Error('this graph is closed; load it again');
    const length = this.shape(tensor).reduce((product, size) => product * size, 1);
    return new VIEWS[tensor.dtype](this.#memory.buffer, tensor.offset, length);
  }

  /**
   * Run one inference.
   * @param {Object} feeds by input name, a typed array with exactly as many elements as the input
   * @param {Object} options.dims values of open dimensions; those that are not given are found from the
   *   numbers of elements, where these leave no choice
   * @returns {Object} by output name, a typed array that the caller owns; `shape` tells its shape
   */
  run(feeds, { dims = {} } = {}) {
    if (!this.#memory) throw new Error('this graph is closed; load it again');
    if (this.dims.length || Object.keys(dims).length) this.set(this.#valuesOf(feeds, dims));
    for (const tensor of this.inputs) {
      const view = this.view(tensor);
      const given = feeds[tensor.name];
      if (given?.constructor !== view.constructor || given.length !== view.length) {
        const found = given ? `${given.constructor.name} of ${given.length}` : 'nothing';
        throw new FeedError(
          `input "${tensor.name}": expected ${view.constructor.name} of ${view.length}, got ${found}`,
        );
      }
      view.set(given);
    }
    this.call();
    return Object.fromEntries(this.outputs.map((tensor) => [tensor.name, this.view(tensor).slice()]));
  }

  /** Run the graph on the values that are in its inputs. */
  call() {
    this.#call('wasmgraph_run');
    this.#readComputed();
  }

  /** Take over the values of dimensions that the graph has computed. */
  #readComputed() {
    for (const { name, offset, computed } of this.manifest.dims ?? []) {
      if (computed) this.#values[name] = new Int32Array(this.#memory.buffer, offset, 1)[0];
    }
  }

  /** Run one call of the plan on the values in memory, for profiling. */
  step(index) {
    this.#call('wasmgraph_step', index);
  }

  #call(name, ...operands) {
    if (!this.#exports) throw new Error('this graph is closed; load it again');
    let error;
    try {
      error = this.#exports[name](...operands);
    } catch (trap) {
      if (this.#trap) {
        this.#exports.__stack_pointer.value = this.#stackTop;
        this.#exports.wasmgraph_fail();
      } else {
        this.#replaceInstance();
      }
      throw trap;
    }
    if (!error) return;
    this.#readComputed();
    const dim = this.manifest.dims?.[error - FIRST_DIM];
    if (dim && error < FIRST_CHECK) {
      throw new FeedError(`the size that data gives "${dim.name}" is not from ${dim.least} to ${dim.most}`);
    }
    const check = this.manifest.checks?.[error - FIRST_CHECK];
    if (check && error >= FIRST_CHECK) throw this.#outOfRange(check);
    throw new Error(this.#trapOfAnotherThread() ?? `${name}(${operands}) returned ${error}`);
  }

  #outOfRange({ node, operator, offset, ...range }) {
    const [low, high] = [range.low, range.high].map((size) => evaluate(size, this.#values));
    const code = new BigInt64Array(this.#memory.buffer, offset, 1)[0];
    const index = code & 1n ? BigInt(high + low) - (code >> 1n) : code >> 1n;
    return new IndexRangeError(
      `the index ${index} is out of range at ${node} (${operator}); it must be from ${low} to ${high}.` +
        ' Look at the inputs that it is computed from.',
    );
  }

  /** Make a new instance after a trap, which leaves the module's stack pointer where it was. */
  #replaceInstance() {
    try {
      this.#exports = this.#renew().exports;
      this.#memory = this.#exports.memory;
    } catch {
      // A page's main thread may not instantiate a large module synchronously: keep the old instance.
    }
  }

  #trapOfAnotherThread() {
    const [length] = this.#trap ? new Int32Array(this.#trap, 0, 1) : [0];
    if (!length) return undefined;
    new Int32Array(this.#trap, 0, 1)[0] = 0;
    return new TextDecoder().decode(new Uint8Array(this.#trap, 4, length).slice());
  }

  /** End the graph's threads and release its memory. A closed graph cannot run; closing it again does
      nothing. */
  close() {
    if (this.#trap && this.#exports) this.#exports.wasmgraph_stop();
    for (const worker of this.#workers.splice(0)) worker.terminate?.();
    this.#exports = this.#memory = undefined;
  }
}

async function startWorker(data) {
  const worker = new Worker(new URL('./worker.mjs', import.meta.url), { type: 'module' });
  try {
    await new Promise((resolve, reject) => {
      worker.onmessage = resolve;
      worker.onerror = ({ message }) => reject(new Error(message || 'worker.mjs cannot be loaded'));
      worker.postMessage(data);
    });
  } catch (error) {
    worker.terminate();
    throw new Error(`a thread of the graph cannot be started: ${error.message}`);
  }
  return worker;
}

/** Wait for all workers to start. If one fails, terminate the others and throw its error. */
async function startAll(promises) {
  const starts = await Promise.allSettled(promises);
  const failed = starts.find(({ status }) => status === 'rejected');
  if (!failed) return starts.map(({ value }) => value);
  for (const { value } of starts) value?.terminate?.();
  throw failed.reason;
}

/**
 * The WASI functions that a graph may import: to open, read and close its parameter file.
 * @param {Uint8Array} content of the file
 * @param {Function} memory returns the graph's memory, once it exists
 */
export function parameterFile(content, memory) {
  let position = 0;
  const words = () => new DataView(memory().buffer);
  return {
    path_open(folder, lookup, path, length, how, rights, inherited, flags, opened) {
      position = 0;
      words().setUint32(opened, 4, true);
      return 0;
    },
    fd_read(file, pieces, count, got) {
      const began = position;
      for (let piece = pieces; piece < pieces + 8 * count; piece += 8) {
        const [at, length] = [words().getUint32(piece, true), words().getUint32(piece + 4, true)];
        const part = content.subarray(position, position + length);
        new Uint8Array(memory().buffer, at, part.length).set(part);
        position += part.length;
      }
      words().setUint32(got, position - began, true);
      return 0;
    },
    fd_close: () => 0,
  };
}

/**
 * Load a graph.
 * @param {BufferSource|WebAssembly.Module} source the artifact's bytes, or a module compiled from them
 * @param {number} options.threads threads of one inference; more than one for graphs compiled for threads.
 *   In a browser such a graph must be loaded in a worker: a page's main thread may not block.
 * @param {Uint8Array} options.params content of the parameter file, for modules compiled with params="wasi"
 * @param {Function} options.start starts a thread from the data for `serve` (worker.mjs). Its promise
 *   resolves, when the thread is ready, to an object whose `terminate()` ends the thread
 * @returns {Promise<Graph>}
 */
export async function load(source, { threads = 1, start = startWorker, params } = {}) {
  const module = source instanceof WebAssembly.Module ? source : await WebAssembly.compile(source);
  const [section] = WebAssembly.Module.customSections(module, 'wasmgraph');
  if (!section) throw new TypeError('this module is no wasm graph: it has no "wasmgraph" section');
  const manifest = JSON.parse(new TextDecoder().decode(section));
  if (manifest.params === 'wasi' && !params) {
    throw new TypeError(`this graph reads its parameters from a file: params is missing`);
  }
  let memory;
  const imports = params ? { wasi_snapshot_preview1: parameterFile(params, () => memory) } : {};
  if (!manifest.memory_pages) {
    if (threads > 1) throw new TypeError('this graph was compiled for one thread');
    const prepare = (instance) => {
      memory = instance.exports.memory;
      chooseLoops(instance, memory);
      return instance;
    };
    const instance = prepare(await WebAssembly.instantiate(module, imports));
    const renew = () => prepare(new WebAssembly.Instance(module, imports));
    return withParameters(new Graph(module, manifest, instance, memory, { renew }), instance);
  }
  const [pages, maximum] = manifest.memory_pages;
  memory = new WebAssembly.Memory({ initial: pages + threads - 1, maximum, shared: true });
  const instance = await WebAssembly.instantiate(module, { ...imports, env: { memory } });
  instance.exports.wasmgraph_init();
  chooseLoops(instance, memory);
  const trap = new SharedArrayBuffer(TRAP_BYTES);
  instance.exports.wasmgraph_threads(threads);
  const workers = await startAll(
    Array.from({ length: threads - 1 }, async (_, number) =>
      start({ module, memory, stackTop: (pages + number + 1) * PAGE, trap }),
    ),
  );
  return withParameters(new Graph(module, manifest, instance, memory, { trap, workers }), instance);
}

/** A module may have two versions of its loops. Choose the one that is not rewritten for Wasmtime. */
function chooseLoops(instance, memory) {
  const place = instance.exports.wasmgraph_plain_loops;
  if (place) new Int32Array(memory.buffer, place.value >>> 0, 1)[0] = 1; // addresses are unsigned
}

/** Make the module read and check its parameters, if they are in a file. */
function withParameters(graph, instance) {
  const error = graph.manifest.params === 'wasi' ? instance.exports.wasmgraph_load() : 0;
  if (!error) return graph;
  graph.close();
  throw new Error(`its parameters ${MISSING_PARAMS[error] ?? `were refused (${error})`}`);
}
