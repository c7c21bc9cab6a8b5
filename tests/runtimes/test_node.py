"""The same artifacts under V8."""

from __future__ import annotations

import gc
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import wasmgraph as wg
from tests.runtimes.test_checks import forge
from wasmgraph.errors import ArtifactError, ExecutionError, FeedError, MissingDependencyError, UsageError
from wasmgraph.runtimes import get_runtime

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no `node` on the PATH")


@needs_node
@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128"])
def test_gives_wasmtimes_bits(target: str, small_artifact, small_input: np.ndarray) -> None:
    path = small_artifact(target)
    with wg.load(path) as one, wg.load(path, runtime="node") as other:
        for factor in (1, -3):
            feeds = {"x": small_input * factor}
            expected, found = one.run(feeds), other.run(feeds)
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])


@needs_node
def test_relaxed_simd_agrees_and_is_refused_where_there_is_none(
    small_artifact, small_input: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_artifact("wasm32-relaxed-simd")
    with wg.load(small_artifact("wasm32-simd128")) as strict:
        expected = strict.run({"x": small_input})
    for runtime in ("wasmtime", "node"):
        with wg.load(path, runtime=runtime) as session:
            found = session.run({"x": small_input})
            for name in expected:
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("wasmgraph.runtimes.node.relaxed_simd_flags", lambda: None)
    with pytest.raises(ArtifactError, match="needs relaxed SIMD, which V8 .* does not have"):
        wg.load(path, runtime="node")


@needs_node
def test_outputs_are_the_callers_and_feeds_are_checked(small_artifact, small_input: np.ndarray) -> None:
    with wg.load(small_artifact("wasm32"), runtime="node") as session:
        first = session.run({"x": small_input})["logits"]
        kept = first.copy()
        with pytest.raises(FeedError):
            session.run({"x": small_input[0]})
        session.run({"x": small_input * 2})
        first += 0
        np.testing.assert_array_equal(first, kept)
        session.run_step(0)


@needs_node
def test_a_closed_session_leaves_no_process(small_artifact, small_input: np.ndarray) -> None:
    session = wg.load(small_artifact("wasm32"), runtime="node")
    process = session.process._child._process  # type: ignore[attr-defined]
    session.close()
    assert process.poll() is not None
    with pytest.raises(UsageError, match="closed"):
        session.run({"x": small_input})
    forgotten = wg.load(small_artifact("wasm32"), runtime="node")
    process = forgotten.process._child._process  # type: ignore[attr-defined]
    del forgotten
    gc.collect()
    assert process.poll() is not None


@needs_node
def test_a_killed_process_is_an_error_not_a_hang(small_artifact, small_input: np.ndarray) -> None:
    with wg.load(small_artifact("wasm32"), runtime="node") as session:
        session.process._child._process.kill()  # type: ignore[attr-defined]
        with pytest.raises(ExecutionError):
            session.run({"x": small_input})


@needs_node
def test_a_trap_is_named_and_survived(tmp_path: Path, small_artifact, small_input: np.ndarray) -> None:
    wat = """(module (memory (export "memory") 200 200)
      (global (export "wasmgraph_arena") i32 (i32.const 0))
      (func (export "wasmgraph_run") (result i32) unreachable)
      (func (export "wasmgraph_step") (param i32) (result i32) i32.const 7))"""
    path = forge(tmp_path / "trap.wasm", small_artifact("wasm32"), wat)
    with wg.load(path, runtime="node") as session:
        for _ in range(2):
            with pytest.raises(ExecutionError, match="unreachable"):
                session.run({"x": small_input})
        with pytest.raises(ExecutionError, match=r"wasmgraph_step\(3\) returned 7"):
            session.run_step(3)


@needs_node
def test_v8_is_given_the_loops_that_suit_it(
    tmp_path: Path, small_artifact, small_input: np.ndarray
) -> None:
    output = wg.Artifact.open(small_artifact("wasm32")).manifest.outputs[0]
    wat = f"""(module (memory (export "memory") 200 200)
      (global (export "wasmgraph_arena") i32 (i32.const 0))
      (global (export "wasmgraph_plain_loops") i32 (i32.const 40000))
      (func (export "wasmgraph_run") (result i32)
        (f32.store (i32.const {output.offset}) (f32.convert_i32_u (i32.load (i32.const 40000))))
        (i32.const 0))
      (func (export "wasmgraph_step") (param i32) (result i32) i32.const 0))"""
    path = forge(tmp_path / "loops.wasm", small_artifact("wasm32"), wat)
    for runtime, plain in (("node", 1), ("wasmtime", 0)):
        with wg.load(path, runtime=runtime) as session:
            assert session.run({"x": small_input})[output.name].flat[0] == plain


@needs_node
def test_the_loader_by_itself(small_artifact) -> None:
    """The ES module in a script of its own: wrong feeds are named, results are copies."""
    loader = Path(wg.__file__).parent / "web" / "loader.mjs"
    script = f"""
      import {{ readFileSync }} from 'node:fs';
      import {{ load }} from {str(loader)!r};
      const graph = await load(readFileSync({str(small_artifact("wasm32"))!r}));
      const [input] = graph.inputs;
      const size = input.shape.reduce((a, b) => a * b, 1);
      const first = graph.run({{ [input.name]: new Float32Array(size).fill(1) }})['logits'];
      const kept = first.slice();
      graph.run({{ [input.name]: new Float32Array(size).fill(5) }});
      if (first.some((value, i) => value !== kept[i])) throw new Error('overwritten');
      try {{
        graph.run({{ [input.name]: new Float64Array(size) }});
      }} catch (error) {{
        console.log(error.message);
      }}
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True
    )
    assert "expected Float32Array" in done.stdout
    assert "got Float64Array" in done.stdout


def test_without_node_the_error_says_so(monkeypatch: pytest.MonkeyPatch, small_artifact) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"needs Node\.js"):
        wg.load(small_artifact("wasm32"), runtime="node")


@needs_node
def test_the_version_names_v8() -> None:
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    version = get_runtime("node").version()
    assert version.startswith(said.strip().removeprefix("v"))
    assert "V8" in version
