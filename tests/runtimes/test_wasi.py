"""Parameters through WASI: one file for every target, checked inside of the module; no more is seen."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import wasmtime
from onnx import TensorProto, helper, numpy_helper

import wasmgraph as wg
from tests.conftest import model_of, wasmtime_program
from tests.runtimes.test_checks import MEMORY, RUN, STEP, forge
from wasmgraph.artifact import PARAMS_FOLDER
from wasmgraph.cli import main
from wasmgraph.errors import ArtifactError, UsageError
from wasmgraph.runtimes.wasmtime_engine import EngineConfig, engine
from wasmgraph.runtimes.wasmtime_private import SharedMemory
from wasmgraph.runtimes.wasmtime_wasi import instantiate

WASM_TARGETS = ("wasm32", "wasm32-simd128", "wasm32-relaxed-simd", "wasm32-simd128-threads")


@pytest.fixture(scope="module")
def separate(small_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By target, the small model with its parameters in a file."""
    directory = tmp_path_factory.mktemp("wasi")

    def artifact(target: str) -> Path:
        path = directory / f"{target}.wasm"
        if not path.exists():
            wg.compile(small_onnx, target=target, params="wasi").save(path)
        return path

    return artifact


def the_params(path: Path) -> Path:
    """The only parameter file beside a module."""
    (found,) = (path.parent / PARAMS_FOLDER).iterdir()
    return found


@pytest.fixture
def moved(separate, tmp_path: Path) -> Path:
    """A module and its parameters, to be spoiled."""
    return wg.Artifact.open(separate("wasm32-simd128")).save(tmp_path / "graph.wasm")


@pytest.mark.parametrize("runtime", ["wasmtime", "node"])
@pytest.mark.parametrize("target", WASM_TARGETS)
def test_results_are_those_of_the_module_that_holds_its_parameters(
    separate, small_artifact, small_input: np.ndarray, target: str, runtime: str
) -> None:
    if runtime == "node" and not shutil.which("node"):
        pytest.skip("Node.js is not installed")
    threads = 2 if target.endswith("threads") else 1
    feeds = {"x": small_input}
    with (
        wg.load(separate(target), runtime=runtime, threads=threads) as session,
        wg.load(small_artifact(target), runtime=runtime, threads=threads) as held,
    ):
        for _ in range(2):
            actual, expected = session.run(feeds), held.run(feeds)
            for name, array in expected.items():
                np.testing.assert_allclose(actual[name], array, rtol=1e-5, atol=1e-7)


def test_one_file_serves_every_target(separate) -> None:
    files = {wg.Artifact.open(separate(target)).params_path for target in WASM_TARGETS}
    assert files == {the_params(separate("wasm32"))}


def test_a_module_sees_a_folder_and_nothing_else(separate) -> None:
    for target in WASM_TARGETS:
        module = wg.Artifact.open(separate(target)).module
        functions = {name for where, name, kind in module.imports if kind == "func"}
        assert functions == {"path_open", "fd_read", "fd_close"}
        assert {where for where, _, kind in module.imports if kind == "func"} == {"wasi_snapshot_preview1"}


SPOILED = {
    "missing": (lambda path: path.unlink(), "cannot be opened"),
    "short": (lambda path: path.write_bytes(path.read_bytes()[:-64]), "another length"),
    "long": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "another length"),
    "empty": (lambda path: path.write_bytes(b""), "another length"),
    "first": (lambda path: path.write_bytes(b"\x01" + path.read_bytes()[1:]), "another content"),
    "last": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"), "another content"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be opened"),
}


@pytest.mark.parametrize("runtime", ["wasmtime", "node"])
@pytest.mark.parametrize("how", SPOILED)
def test_other_parameters_are_refused(moved: Path, how: str, runtime: str) -> None:
    if runtime == "node" and not shutil.which("node"):
        pytest.skip("Node.js is not installed")
    spoil, words = SPOILED[how]
    spoil(the_params(moved))
    with pytest.raises(ArtifactError, match=words):
        wg.load(moved, runtime=runtime)


@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128-threads"])
def test_the_module_itself_runs_on_no_other_parameters(separate, tmp_path: Path, target: str) -> None:
    """Whatever the host looked at."""
    artifact = wg.Artifact.open(wg.Artifact.open(separate(target)).save(tmp_path / "graph.wasm"))
    path = artifact.params_path
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    config = EngineConfig()
    module = wasmtime.Module.from_file(engine(config), str(artifact.path))
    store, memory = wasmtime.Store(engine(config)), None
    if artifact.module.memory_shared:
        limits = wasmtime.Limits(*artifact.module.shared_pages)
        memory = SharedMemory(engine(config), wasmtime.MemoryType(limits, shared=True))
    exports = instantiate(store, module, config, path.parent, memory)
    if memory is not None:
        exports["wasmgraph_init"](store)
    assert exports["wasmgraph_run"](store) == 4
    assert exports["wasmgraph_step"](store, 0) == 4


def test_parameters_may_lie_elsewhere(
    moved: Path, tmp_path: Path, small_artifact, small_input: np.ndarray
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (moved.parent / PARAMS_FOLDER).rename(elsewhere)
    with pytest.raises(ArtifactError, match=r"cannot be opened.*params_folder=DIR"):
        wg.load(moved)
    for untrusted in (False, True):
        with (
            wg.load(moved, params_folder=elsewhere, untrusted=untrusted) as session,
            wg.load(small_artifact("wasm32-simd128")) as held,
        ):
            expected = held.run({"x": small_input})
            np.testing.assert_array_equal(session.run({"x": small_input})["logits"], expected["logits"])


def test_a_refused_file_leaves_no_thread(separate, tmp_path: Path) -> None:
    import threading

    path = wg.Artifact.open(separate("wasm32-simd128-threads")).save(tmp_path / "graph.wasm")
    the_params(path).write_bytes(b"")
    with pytest.raises(ArtifactError):
        wg.load(path, threads=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("wasmgraph-")]


@pytest.mark.parametrize("name", ["fd_write", "fd_readdir", "sock_send", "environ_get"])
def test_nothing_more_of_wasi_is_imported(tmp_path: Path, separate, name: str) -> None:
    extra = f'(import "wasi_snapshot_preview1" "{name}" (func (param i32 i32) (result i32)))'
    wat = f"(module {extra} {MEMORY} {RUN} {STEP})"
    with pytest.raises(ArtifactError, match=f"imports .*{name}") as caught:
        wg.load(forge(tmp_path / "greedy.wasm", separate("wasm32"), wat))
    assert caught.value.check == "imports"


ERRNO_PERMISSIONS = {63, 76, 2, 69}  # perm, notcapable, acces, rofs


@pytest.mark.parametrize(
    ("path", "how", "rights", "allowed"),
    [
        ("here.txt", 0, 2, True),
        ("here.txt", 0, 64, False),  # to write
        ("new.txt", 1, 64, False),  # to create
        ("here.txt", 8, 64, False),  # to truncate
        ("../outside.txt", 0, 2, False),
        ("/etc/passwd", 0, 2, False),
        ("link.txt", 0, 2, False),
    ],
)
def test_the_folder_is_read_only_and_its_edge_holds(
    tmp_path: Path, path: str, how: int, rights: int, allowed: bool
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "here.txt").write_text("here")
    (tmp_path / "outside.txt").write_text("outside")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    wat = f"""(module
      (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
      (memory (export "memory") 1 1) (data (i32.const 16) "{path}")
      (func (export "try") (result i32) (call $open (i32.const 3) (i32.const 1) (i32.const 16)
        (i32.const {len(path)}) (i32.const {how}) (i64.const {rights}) (i64.const 0) (i32.const 0)
        (i32.const 0))))"""
    config = EngineConfig()
    store = wasmtime.Store(engine(config))
    exports = instantiate(store, wasmtime.Module(engine(config), wat), config, folder)
    code = exports["try"](store)
    assert code == 0 if allowed else code in ERRNO_PERMISSIONS
    assert (folder / "here.txt").read_text() == "here"
    assert not (folder / "new.txt").exists()


@pytest.mark.parametrize("size", [1, 15, 16, 1000])
def test_digests_of_every_length_are_right(tmp_path: Path, size: int) -> None:
    """Parameters of one 64-byte block, of several, and none at all."""
    weights = np.random.default_rng(size).normal(size=size).astype(np.float32)
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    model = model_of(nodes, {"x": [size]}, ["y"], {"w": weights} if size > 1 else {"w": np.float32([2])})
    x = np.ones(size, np.float32)
    with wg.load(wg.compile(model, target="wasm32", params="wasi").save(tmp_path / "g.wasm")) as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], x * (weights if size > 1 else 2))


@pytest.fixture(scope="module")
def wasmtime_run() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """``wasmtime run``, the program."""
    program = wasmtime_program()

    def run(*arguments: object, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(program), "run", *map(str, arguments)], input=stdin, capture_output=True, timeout=60
        )

    return run


@pytest.fixture(scope="module")
def commands(small_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("commands")
    return {
        params: wg.compile(small_onnx, params=params, command=True).save(directory / f"{params}.wasm")
        for params in ("embedded", "wasi")
    }


@pytest.mark.parametrize("params", ["embedded", "wasi"])
def test_wasmtime_runs_a_command(
    commands, small_artifact, small_input: np.ndarray, params: str, wasmtime_run
) -> None:
    path = commands[params]
    options = ["--dir", path.parent / PARAMS_FOLDER] if params == "wasi" else []
    raw, expected = b"", b""
    with wg.load(small_artifact("wasm32-simd128")) as session:
        for scale in (1, 2, 3):
            raw += (small_input * np.float32(scale)).tobytes()
            outputs = session.run({"x": small_input * np.float32(scale)})
            expected += b"".join(outputs[spec.name].tobytes() for spec in session.outputs)
    done = wasmtime_run(*options, path, stdin=raw)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == expected


def test_a_command_says_that_an_index_is_out_of_range(tmp_path: Path, wasmtime_run) -> None:
    node = helper.make_node("Gather", ["x", "i"], ["y"])
    made = helper.make_graph(
        [node],
        "lookup",
        [helper.make_tensor_value_info("i", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array([5, 6], np.float32), "x")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = wg.compile(model, command=True).save(tmp_path / "lookup.wasm")
    done = wasmtime_run(path, stdin=np.array([2**40]).tobytes())
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"the inputs make an index point beyond a tensor" in done.stderr


@pytest.mark.parametrize(
    ("length", "words"),
    [(0, b"expected on standard input"), (100, b"ended in the middle of"), (3877, b"middle")],
)
def test_a_command_says_what_it_expects(commands, length: int, words: bytes, wasmtime_run) -> None:
    done = wasmtime_run(commands["embedded"], stdin=bytes(length))
    assert done.returncode == 2
    assert words in done.stderr
    assert b"3876 bytes, x: float32[1, 3, 19, 17]" in done.stderr


def test_a_command_without_its_parameters_says_so(commands, small_input: np.ndarray, wasmtime_run) -> None:
    done = wasmtime_run(commands["wasi"], stdin=small_input.tobytes())
    assert done.returncode == 2
    assert b"--dir wasmgraph-params" in done.stderr
    assert done.stdout == b""


def test_a_command_is_not_loaded(commands) -> None:
    with pytest.raises(ArtifactError, match=r"is a WASI command: `wasmtime run") as caught:
        wg.load(commands["embedded"])
    assert caught.value.check == "command"
    assert wg.Artifact.open(commands["embedded"]).manifest.command


def test_names_of_a_model_do_not_break_out_of_the_message(tmp_path: Path, wasmtime_run) -> None:
    name = 'x"); proc_exit(9); ("\\\n@OUTPUTS@\u00e9'
    model = model_of([helper.make_node("Relu", [name], ["y"])], {name: [4]}, ["y"])
    path = wg.compile(model, command=True).save(tmp_path / "c.wasm")
    done = wasmtime_run(path, stdin=b"")
    assert done.returncode == 2
    assert b"16 bytes, x_); proc_exit(9)" in done.stderr
    assert (
        wasmtime_run(path, stdin=np.float32([-1, 2, -3, 4]).tobytes()).stdout
        == np.float32([0, 2, 0, 4]).tobytes()
    )


def test_a_graph_without_inputs_is_run_once(tmp_path: Path, wasmtime_run) -> None:
    model = model_of([helper.make_node("Relu", ["w"], ["y"])], {}, ["y"], {"w": np.float32([-1, 2])})
    path = wg.compile(model, command=True).save(tmp_path / "c.wasm")
    done = wasmtime_run(path, stdin=b"")
    assert (done.returncode, done.stdout) == (0, np.float32([0, 2]).tobytes())


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("native", {"params": "wasi"}, "native code"),
        ("native", {"command": True}, "native code"),
        ("wasm32-simd128-threads", {"command": True}, "one thread"),
        ("wasm32", {"params": "file"}, "'embedded' or 'wasi'"),
    ],
)
def test_what_does_not_go_together_is_refused(small_onnx: Path, target, options, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        wg.compile(small_onnx, target=target, **options)


def test_the_command_line(small_onnx: Path, tmp_path: Path, small_input: np.ndarray) -> None:
    from click.testing import CliRunner

    def cli(*arguments: object) -> str:
        done = CliRunner().invoke(main, ["--quiet", *map(str, arguments)])
        assert done.exit_code == 0, done.output
        return done.output

    np.save(tmp_path / "x.npy", small_input)
    wasm, x, out = tmp_path / "s.wasm", f"x={tmp_path / 'x.npy'}", tmp_path / "o.npz"
    cli("compile", small_onnx, "-o", wasm, "--params", "wasi")
    said = cli("inspect", wasm)
    assert "params_file   wasmgraph-params/" in said
    assert "wasi_snapshot_preview1.path_open" in said
    cli("run", wasm, "--input", x, "--output", out)
    (tmp_path / PARAMS_FOLDER).rename(tmp_path / "elsewhere")
    cli("run", wasm, "--input", x, "--output", out, "--params-dir", tmp_path / "elsewhere", "--untrusted")
    assert np.load(out)["logits"].shape == (1, 21)


def test_winograd_of_the_shared_packing(tmp_path: Path) -> None:
    """Scalar code over weights that were packed, and an algorithm that was chosen, for vectors."""
    rng = np.random.default_rng(5)
    constants = {
        "w": rng.normal(0, 0.1, (40, 24, 3, 3)).astype(np.float32),
        "d": rng.normal(0, 0.1, (40, 1, 3, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Conv", ["c", "d"], ["y"], pads=[1] * 4, group=40),
    ]
    model = model_of(nodes, {"x": [1, 24, 28, 28]}, ["y"], constants)
    x = rng.normal(0, 1, (1, 24, 28, 28)).astype(np.float32)
    session = onnx.reference.ReferenceEvaluator(model)
    (expected,) = session.run(None, {"x": x})
    for target in ("wasm32", "wasm32-simd128-threads"):
        artifact = wg.compile(model, target=target, params="wasi")
        assert {"winograd-conv2d"} < {step.rule for step in artifact.manifest.steps}
        with wg.load(artifact) as loaded:
            np.testing.assert_allclose(loaded.run({"x": x})["y"], expected, rtol=1e-3, atol=1e-4)


def test_more_than_an_engine_reads_at_once(tmp_path: Path) -> None:
    """Wasmtime allows a call 128 MiB of host memory."""
    weights = np.arange(4096 * 8448, dtype=np.float32).reshape(4096, 8448) % 7
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    artifact = wg.compile(model_of(nodes, {"x": [1, 4096]}, ["y"], {"w": weights}), params="wasi")
    assert artifact.manifest.param_bytes > 128 << 20
    x = np.zeros((1, 4096), np.float32)
    x[0, [0, -1]] = 1
    with wg.load(artifact) as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], weights[[0]] + weights[[-1]])
