"""The loader for browsers: in Node.js, whose workers are made to look like a browser's, and in Chromium."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

import wasmgraph as wg

WEB = Path(wg.__file__).parent / "web"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no `node` on the PATH")

# `Worker` as browsers have it, over Node's. What is said of each: started, ready, failed, ended.
WORKERS = """
import { Worker as Thread } from 'node:worker_threads';
const said = [];
const inside = `
  const { parentPort } = require('node:worker_threads');
  globalThis.WorkerGlobalScope = class { static [Symbol.hasInstance]() { return true; } };
  globalThis.self = {
    set onmessage(handle) { parentPort.on('message', (data) => handle({ data })); },
    postMessage: (data) => parentPort.postMessage(data),
  };
`;
globalThis.Worker = class {
  static failing = -1;
  constructor(url) {
    const number = said.length;
    said.push(['started']);
    const fails = number === Worker.failing ? "throw new Error('no more workers');" : '';
    this.thread = new Thread(`${inside} ${fails} import('${url}');`, { eval: true, execArgv: [] });
    this.thread.on('message', (data) => { said[number].push('ready'); this.onmessage({ data }); });
    this.thread.on('error', (error) => { said[number].push('failed'); this.onerror(error); });
    this.ended = () => said[number].push('terminated');
  }
  postMessage(data) { this.thread.postMessage(data); }
  terminate() { this.ended(); this.thread.terminate(); }
};
"""


def run(path: Path, script: str) -> Any:
    """What a script prints that can use ``bytes`` of an artifact, ``load``, and ``said``. It ends by itself
    once no worker is left."""
    program = f"""
{WORKERS}
import {{ readFileSync }} from 'node:fs';
import {{ load }} from {str(WEB / "loader.mjs")!r};
const bytes = readFileSync({str(path)!r});
const feeds = (graph) => Object.fromEntries(graph.inputs.map(({{ name, shape }}) =>
  [name, new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(1)]));
{script}
"""
    done = subprocess.run(
        ["node", "--input-type=module", "-e", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_closing_a_graph_ends_its_workers(small_artifact) -> None:
    said, errors = run(
        small_artifact("wasm32-simd128-threads"),
        """
const graph = await load(bytes, { threads: 3 });
graph.run(feeds(graph));
graph.close();
graph.close();
const errors = [];
for (const use of [() => graph.run(feeds(graph)), () => graph.step(0), () => graph.view(graph.inputs[0])]) {
  try { use(); } catch (error) { errors.push(error.message); }
}
console.log(JSON.stringify([said, errors]));
""",
    )
    assert said == [["started", "ready", "terminated"]] * 2
    assert errors == ["this graph is closed; load it again"] * 3


@needs_node
def test_if_one_worker_cannot_start_none_stays(small_artifact) -> None:
    said, message = run(
        small_artifact("wasm32-simd128-threads"),
        """
Worker.failing = 1;
const message = await load(bytes, { threads: 4 }).then(() => 'loaded', (error) => error.message);
console.log(JSON.stringify([said, message]));
""",
    )
    assert message == "a thread of the graph cannot be started: no more workers"
    assert [words[-1] for words in said] == ["terminated"] * 3


@needs_node
def test_threads_that_a_host_starts_itself(small_artifact) -> None:
    """``start`` may give something that cannot be ended, or throw."""
    message = run(
        small_artifact("wasm32-simd128-threads"),
        """
const start = () => { throw new Error('not here'); };
const message = await load(bytes, { threads: 2, start }).then(() => 'loaded', (error) => error.message);
console.log(JSON.stringify(message));
""",
    )
    assert message == "not here"


FILES = {
    "/": ("text/html", b"<!DOCTYPE html><title>a page</title>"),
    "/graph.mjs": (
        "text/javascript",
        b"""
import { load } from './loader.mjs';
let graph;
const verbs = {
  async load() {
    graph = await load(await (await fetch('/graph.wasm')).arrayBuffer(), { threads: 3 });
    const feeds = graph.inputs.map(({ name, shape }) =>
      [name, new Float32Array(shape.reduce((a, b) => a * b, 1))]);
    return Object.keys(graph.run(Object.fromEntries(feeds)));
  },
  close: () => graph.close(),
};
onmessage = ({ data }) => Promise.resolve(data).then((verb) => verbs[verb]()).then(
  (result) => postMessage(result), (error) => postMessage(`${error}`));
""",
    ),
    "/loader.mjs": ("text/javascript", (WEB / "loader.mjs").read_bytes()),
    "/worker.mjs": ("text/javascript", (WEB / "worker.mjs").read_bytes()),
}
ASK = """(verb) => new Promise((resolve) => {
  window.worker ??= new Worker('/graph.mjs', { type: 'module' });
  window.worker.onmessage = ({ data }) => resolve(data);
  window.worker.postMessage(verb);
})"""


def worker_threads() -> int:
    """How many workers all browsers that this process started have."""
    names = []
    for process in psutil.Process().children(recursive=True):
        with suppress(OSError, psutil.Error):
            names += [p.read_text() for p in Path(f"/proc/{process.pid}/task").glob("*/comm")]
    return sum(name.startswith("DedicatedWorker") for name in names)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in Linux's /proc")
def test_closing_a_graph_ends_its_workers_in_chromium(small_artifact) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no Chromium on the PATH (Debian: apt-get install chromium)")
    graph = small_artifact("wasm32-simd128-threads").read_bytes()
    files = {**FILES, "/graph.wasm": ("application/wasm", graph)}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, content = files.get(self.path, ("text/plain", b""))
            self.send_response(200 if content else 404)
            for name, value in {
                "Content-Type": kind,
                "Content-Length": str(len(content)),
                "Cross-Origin-Opener-Policy": "same-origin",  # shared memory needs both
                "Cross-Origin-Embedder-Policy": "require-corp",
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
            assert page.evaluate(ASK, "load") == ["probabilities", "logits"]
            assert worker_threads() == 3
            page.evaluate(ASK, "close")
            deadline = time.monotonic() + 10
            while worker_threads() > 1 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert worker_threads() == 1  # the one that loaded the graph
            browser.close()
        server.shutdown()


OPEN = """
const graph = await load(readFileSync(path));
const said = { dims: graph.dims.map(({ name, least, most }) => [name, least, most]), runs: [], errors: [] };
const ones = (count) => new Float32Array(count).fill(1);
for (const [x, z, options] of [[6, 2], [40, 4, { dims: { n: 10 } }], [3, 3]]) {
  const found = graph.run({ x: ones(x), z: ones(z) }, options);
  said.runs.push([graph.shape(graph.outputs[0]), [...found.y].length, graph.values]);
}
const wrong = [
  [6, 5],
  [42, 2],
  [6, 2, { dims: { k: 1 } }],
  [6, 2, { dims: { n: 2 } }],
  [6, 2, { dims: { m: 5, n: 1 } }],
];
for (const [x, z, options] of wrong) {
  try {
    graph.run({ x: ones(x), z: ones(z) }, options);
    said.errors.push('none');
  } catch (error) {
    said.errors.push(`${error.name}: ${error.message}`);
  }
}
console.log(JSON.stringify(said));
"""


@needs_node
def test_open_dimensions_are_found_from_lengths(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "z"], ["y"])],
        "open",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m"]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["m"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = wg.compile(model, dims={"n": (1, 20), "m": (1, 4)}).save(tmp_path / "open.wasm")
    script = tmp_path / "open.mjs"
    head = (
        f"import {{ readFileSync }} from 'node:fs';\nimport {{ load }} from {str(WEB / 'loader.mjs')!r};\n"
    )
    script.write_text(f"{head}const path = {str(path)!r};\n{OPEN}")
    done = subprocess.run(["node", str(script)], capture_output=True, text=True, timeout=60, check=True)
    said = json.loads(done.stdout)
    assert said["dims"] == [["n", 1, 20], ["m", 1, 4]]
    assert [run[:2] for run in said["runs"]] == [[[3, 2], 6], [[10, 4], 40], [[1, 3], 3]]
    assert said["runs"][1][2] == {"n": 10, "m": 4}
    errors = [
        'FeedError: input "z" has 5 elements, for which there is no "m" from 1 to 4',
        'FeedError: input "x" has 42 elements, for which there is no "n" from 1 to 20',
        'FeedError: no dimension is called "k"',
        'FeedError: input "z": expected Float32Array of 3, got Float32Array of 2',
        'FeedError: the dimension "m" is 5; this graph was compiled for 1 to 4',
    ]
    assert said["errors"] == errors
