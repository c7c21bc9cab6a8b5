"""The loader for browsers, in Node.js: its workers are those of a browser, as far as it can tell."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import wasmgraph as wg

WEB = Path(wg.__file__).parent / "web"
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="there is no `node` on the PATH")

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
