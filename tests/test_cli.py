from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper
from PIL import Image

import wasmgraph as wg
from tests.conftest import model_of, small_model
from wasmgraph.cli import main


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_compile_run_inspect(small_onnx: Path, tmp_path: Path, small_input: np.ndarray) -> None:
    out = tmp_path / "small.wasm"
    done = invoke("compile", small_onnx, "-o", out, "--target", "wasm32")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)
    for words in ("import", "schedule", "direct-conv2d", "without parameters", "row-reduction"):
        assert words in done.stderr, words

    np.save(tmp_path / "x.npy", small_input)
    done = invoke("run", out, "--input", f"x={tmp_path / 'x.npy'}", "--output", tmp_path / "y.npz")
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "y.npz") as outputs:
        assert outputs["probabilities"].sum() == pytest.approx(1, abs=1e-5)

    done = invoke("inspect", out)
    assert "imports       none" in done.output
    facts = json.loads(invoke("inspect", out, "--json").output)
    assert facts["imports"] == []
    assert facts["target"] == "wasm32"
    assert facts["bytes"] == out.stat().st_size


def test_a_dimension_may_be_zero(tmp_path: Path) -> None:
    nodes = [helper.make_node("Concat", ["cache", "x"], ["y"], axis=1)]
    onnx.save(model_of(nodes, {"cache": [2, "past"], "x": [2, 3]}, ["y"]), tmp_path / "m.onnx")
    done = invoke("compile", tmp_path / "m.onnx", "-o", tmp_path / "m.wasm", "--shape", "cache=2,0")
    assert done.exit_code == 0, done.output
    feeds = {"cache": np.zeros((2, 0), np.float32), "x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    inputs = []
    for name, array in feeds.items():
        np.save(tmp_path / f"{name}.npy", array)
        inputs += ["--input", f"{name}={tmp_path / name}.npy"]
    done = invoke("run", tmp_path / "m.wasm", *inputs, "--output", tmp_path / "y.npz")
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["y"], feeds["x"])


def test_run_casts_only_when_it_is_told_to(tmp_path: Path, small_artifact, small_input: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", small_input.astype(np.float64))
    run = ["run", small_artifact("wasm32"), "--input", f"x={tmp_path / 'x.npy'}"]
    run += ["--output", tmp_path / "y.npz"]
    done = invoke(*run)
    assert done.exit_code == 2
    assert "--no-strict" in done.stderr
    assert not (tmp_path / "y.npz").exists()
    assert invoke(*run, "--no-strict").exit_code == 0
    expected = wg.load(small_artifact("wasm32")).run(small_input)["logits"]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["logits"], expected)


def test_profile_names_every_kernel_against_the_roofline(small_artifact) -> None:
    done = invoke("profile", small_artifact("wasm32-simd128"), "--rounds", "2")
    assert done.exit_code == 0, done.output
    for words in ("roofline measured now", "GFLOP/s", "direct-conv2d", "softmax", "row-reduction"):
        assert words in done.output, words
    data = json.loads(invoke("profile", small_artifact("wasm32-simd128"), "--rounds", "1", "--json").output)
    steps = wg.Artifact.open(small_artifact("wasm32-simd128")).manifest.steps
    assert {row["kernel"] for row in data["kernels"]} == {step.kernel for step in steps}
    assert data["roofline"]["flops_per_s"] > 1e8


def test_what_no_rule_schedules_is_named(tmp_path: Path) -> None:
    model = model_of([helper.make_node("Hardmax", ["x"], ["y"], axis=0)], {"x": [3, 7]}, ["y"])
    onnx.save(model, tmp_path / "m.onnx")
    done = invoke("compile", tmp_path / "m.onnx", "-o", tmp_path / "m.wasm")
    assert done.exit_code == 0, done.output
    assert "fell back" in done.stderr
    assert "argmax" in done.stderr
    assert "fallback" in invoke("profile", tmp_path / "m.wasm", "--rounds", "1").output


def test_winograd_can_be_refused(tmp_path: Path) -> None:
    weights = {"w": np.ones((64, 64, 3, 3), np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)]
    onnx.save(model_of(nodes, {"x": [1, 64, 56, 56]}, ["y"], weights), tmp_path / "m.onnx")
    for options, rule in ((), "winograd-conv2d"), (("--no-winograd",), "direct-conv2d"):
        done = invoke("compile", tmp_path / "m.onnx", "-o", tmp_path / "m.wasm", *options)
        assert done.exit_code == 0, done.output
        assert rule in {step.rule for step in wg.Artifact.open(tmp_path / "m.wasm").manifest.steps}


def classifier(path: Path, weights: str = "trained") -> Path:
    model = small_model()
    how = {
        "resize_short_side": 20,
        "center_crop": 17,
        "channels": "RGB",
        "mean": [0, 0, 0],
        "std": [255] * 3,
        "layout": "NCHW",
    }
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 17
    description = {
        "task": "image-classification",
        "weights": weights,
        "input": "x",
        "probabilities": "probabilities",
        "preprocessing": how,
        "labels": [f"label {i}" for i in range(21)],
    }
    helper.set_model_props(model, {"wasmgraph": json.dumps(description)})
    onnx.save(model, path)
    return path


def test_classify(tmp_path: Path, small_artifact) -> None:
    wasm = tmp_path / "c.wasm"
    assert invoke("compile", classifier(tmp_path / "c.onnx"), "-o", wasm).exit_code == 0
    Image.new("RGB", (40, 30), (200, 100, 0)).save(tmp_path / "photo.png")
    done = invoke("classify", wasm, tmp_path / "photo.png", "--top", "3")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].endswith("photo.png")
    shares = [float(line.split("%")[0]) for line in lines[1:]]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)
    assert all("label " in line for line in lines[1:])
    assert invoke("classify", wasm, tmp_path / "absent.png").exit_code == 2
    done = invoke("classify", small_artifact("wasm32"), tmp_path / "photo.png")
    assert done.exit_code == 2
    assert "no description" in done.stderr


MEAL = ("A man is eating pasta.", "Someone is having a meal of noodles.", "Shares fell today.")


def test_embed(minilm_artifact, small_artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wasm = tmp_path / "minilm.wasm"
    minilm_artifact("wasm32-simd128").save(wasm)
    done = invoke("embed", wasm, *MEAL)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["1", "2", "3"]
    assert [line.split("  ")[-2:] for line in lines[1:]] == [[str(n), s] for n, s in enumerate(MEAL, 1)]
    cosine = [[float(number) for number in line.split()[:3]] for line in lines[1:]]
    assert [cosine[n][n] for n in range(3)] == [1, 1, 1]
    assert cosine[0][1] == cosine[1][0] > cosine[0][2] + 0.2

    facts = json.loads(invoke("embed", wasm, *MEAL, "--json", "--untrusted").stdout)
    assert [said["sentence"] for said in facts["sentences"]] == list(MEAL)
    assert facts["cosines"][0][1] == pytest.approx(cosine[0][1], abs=1e-3)
    one = invoke("embed", wasm, MEAL[0])
    assert json.loads(one.stdout) == facts["sentences"][0]["vector"]
    assert len(json.loads(one.stdout)) == 384

    done = invoke("embed", wasm, "word " * 20, "short")
    assert (done.exit_code, done.stderr) == (
        0,
        "warning: sentence 1 has 22 tokens, the graph takes 16: its end is left out.\n",
    )
    for arguments, words in (
        ([wasm], "Missing argument"),
        ([wasm, "a", "--tokenizer", tmp_path / "absent.json"], "absent.json: No such file"),
        ([wasm, "a", "--tokenizer", wasm], "minilm.wasm is no tokenizer"),
        ([small_artifact("wasm32"), "a"], "no description"),
    ):
        done = invoke("embed", *arguments)
        assert done.exit_code == 2, done.output
        assert words in done.stderr
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    done = invoke("embed", wasm, "a")
    assert done.exit_code == 2
    assert "pip install 'wasmgraph[text]'" in done.stderr


def test_classify_casts_to_what_the_graph_takes(tmp_path: Path) -> None:
    model = onnx.load(classifier(tmp_path / "c.onnx"))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for node in model.graph.node:
        node.input[:] = ["decoded" if name == "x" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["decoded"], to=onnx.TensorProto.FLOAT))
    onnx.save(model, tmp_path / "c.onnx")
    Image.new("RGB", (40, 30), (200, 100, 0)).save(tmp_path / "photo.png")
    assert invoke("compile", tmp_path / "c.onnx", "-o", tmp_path / "c.wasm").exit_code == 0
    done = invoke("classify", tmp_path / "c.wasm", tmp_path / "photo.png")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("untrusted", [[], ["--untrusted"]])
def test_a_description_gives_no_orders(tmp_path: Path, untrusted: list[str]) -> None:
    """Neither to the terminal, nor to make an image that fills the host's memory."""
    Image.new("RGB", (40, 30), (200, 100, 0)).save(tmp_path / "photo.png")
    path, wasm = classifier(tmp_path / "c.onnx"), tmp_path / "c.wasm"
    model = onnx.load(path)
    good = json.loads(model.metadata_props[0].value)
    hostile = {"labels": [f"\x1b]0;{label}\x07" for label in good["labels"]]}
    huge = {"preprocessing": good["preprocessing"] | {"resize_short_side": 10**6, "center_crop": 10**6}}
    for change, code, words in (
        (hostile, 0, "\N{REPLACEMENT CHARACTER}]0;label"),
        (huge, 2, "center_crop"),
    ):
        model.metadata_props[0].value = json.dumps(good | change)
        onnx.save(model, path)
        assert invoke("compile", path, "-o", wasm).exit_code == 0
        done = invoke("classify", wasm, tmp_path / "photo.png", *untrusted)
        assert done.exit_code == code, done.output
        assert words in done.output
        assert "\x1b" not in done.output


def test_bad_input_exits_with_2_says_what_and_leaves_nothing(
    tmp_path: Path, small_onnx: Path, small_artifact, small_input: np.ndarray
) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    dynamic = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 2]}, ["y"])
    onnx.save(dynamic, tmp_path / "dynamic.onnx")
    np.save(tmp_path / "x.npy", small_input)
    np.save(tmp_path / "double.npy", small_input.astype(np.float64))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    wasm = small_artifact("wasm32")
    (tmp_path / "cut.wasm").write_bytes(wasm.read_bytes()[:-9])
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "out.wasm"
    npz = tmp_path / "out.npz"
    cases = [
        (["compile", tmp_path / "text.onnx", "-o", out], "is not an ONNX file"),
        (["compile", tmp_path / "absent.onnx", "-o", out], "No such file"),
        (["compile", tmp_path / "dynamic.onnx", "-o", out], "--shape x=1,2"),
        (["compile", small_onnx, "-o", out, "--target", "wasm128"], "unknown target"),
        (["compile", small_onnx, "-o", out, "--shape", "x=1,a"], "dimension 'a', which has no bounds"),
        (["compile", small_onnx, "-o", out, "--shape", "x=1,2x"], "whole numbers"),
        (["compile", small_onnx, "-o", out, "--dim", "x=4..2"], "from 4 to 2"),
        (["compile", small_onnx, "-o", out, "--dim", "x=few"], "expected the least and the most"),
        (["run", wasm, "--dim", "n=1..2", "--output", npz], "expected one value"),
        (["compile", small_onnx, "-o", out, "--shape", "x"], "expected NAME=VALUE"),
        (["compile", small_onnx, "-o", out, "--shape", "x=-1,3,19,17"], "not be negative"),
        (["compile", small_onnx, "-o", tmp_path / "no" / "out.wasm"], "there is no directory"),
        (["run", wasm, "--output", npz], "input 'x' is not given"),
        (["run", wasm, "--input", f"x={tmp_path / 'double.npy'}", "--output", npz], "got x: float64"),
        (["run", wasm, "--input", f"z={tmp_path / 'x.npy'}", "--output", npz], "no input is called 'z'"),
        (["run", wasm, "--input", f"x={wasm}", "--output", npz], "is not a .npy file"),
        (["run", wasm, "--input", f"x={tmp_path / 'object.npy'}", "--output", npz], "is not a .npy file"),
        (["run", wasm, "--input", f"x={tmp_path / 'absent.npy'}", "--output", npz], "No such file"),
        (["run", wasm, "--input", f"x={tmp_path}", "--output", npz], "Is a directory"),
        (["run", tmp_path / "cut.wasm", "--output", npz], "truncated"),
        (["inspect", tmp_path / "text.onnx"], "not a wasmgraph artifact"),
        (["fetch", "vgg"], "unknown model"),
        (["report", tmp_path / "x.npy"], "x.npy"),
        (["frobnicate"], "No such command"),
    ]
    for arguments, words in cases:
        done = invoke(*arguments)
        assert done.exit_code == 2, (arguments, done.output)
        assert words in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr
        assert sorted(tmp_path.iterdir()) == before, arguments


def test_a_fault_of_ours_is_3_and_shows_its_trace_only_with_debug(
    monkeypatch: pytest.MonkeyPatch, small_artifact
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("out of cheese")

    monkeypatch.setattr("wasmgraph.artifact.Artifact.open", broken)
    done = invoke("inspect", small_artifact("wasm32"))
    assert done.exit_code == 3
    assert "internal error: RuntimeError: out of cheese" in done.stderr
    assert isinstance(invoke("--debug", "inspect", small_artifact("wasm32")).exception, RuntimeError)


def test_the_installed_command_ends_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wasmgraph", "inspect", str(tmp_path / "absent.wasm")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


HEAVY = ("tvm", "wasmtime", "onnx", "onnxruntime", "torch")


@pytest.mark.parametrize(
    "command",
    [
        ["report", "results/baseline.json", "-o", "{out}"],
        ["compare", "results/baseline.json", "results/baseline.json", "--markdown", "{out}/v.md"],
        ["history", "add", "results/baseline.json", "--file", "{out}/h.jsonl"],
        ["--help"],
    ],
    ids=lambda command: command[0],
)
def test_reading_results_needs_no_engine(command: list[str], tmp_path: Path) -> None:
    program = (
        "import sys; from wasmgraph.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    )
    program += f"print([name for name in {HEAVY} if name in sys.modules])"
    arguments = [part.format(out=tmp_path) for part in command]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "rror" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "fetch",
        "compile",
        "run",
        "classify",
        "inspect",
        "profile",
        "report",
        "compare",
        "regress",
        "completion",
    ],
)
def test_every_command_shows_an_example_and_speaks_json(command: str) -> None:
    text = invoke(command, "--help").output
    assert f"wasmgraph {command}" in text.split("Example:")[1]
    assert "--json" in text or command == "completion"


def test_quiet_leaves_the_result_alone(small_onnx: Path, tmp_path: Path) -> None:
    done = invoke("--quiet", "compile", small_onnx, "-o", tmp_path / "m.wasm", "--target", "native")
    assert (done.exit_code, done.stderr, done.stdout.strip()) == (0, "", str(tmp_path / "m.wasm"))
    facts = json.loads(invoke("-q", "compile", small_onnx, "-o", tmp_path / "m.wasm", "--json").stdout)
    assert facts["target"] == "wasm32-simd128"
    assert facts["seconds"]["link"] > 0
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 19, 17), np.float32))
    arguments = ["--input", f"x={tmp_path / 'x.npy'}", "--output", tmp_path / "y.npz", "--json"]
    shapes = json.loads(invoke("run", tmp_path / "m.wasm", *arguments).stdout)["outputs"]
    assert shapes["probabilities"] == {"dtype": "float32", "shape": [1, 21]}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell: str) -> None:
    assert "_WASMGRAPH_COMPLETE" in invoke("completion", shell).output


def test_a_pipe_that_closes_is_not_a_verdict(tmp_path: Path) -> None:
    """`wasmgraph … | head`: exit code 1 would say "worse"."""
    files = "results/baseline.json results/baseline.json"
    command = f"{sys.executable} -m wasmgraph compare {files} --all --json"
    root = Path(__file__).parent.parent
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -c 1 > /dev/null; echo ${{PIPESTATUS[0]}}"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() in ("0", "141"), done.stderr
    assert "Traceback" not in done.stderr


def test_an_artifact_that_is_not_trusted(tmp_path: Path, small_artifact) -> None:
    wasm = small_artifact("wasm32-simd128")
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 19, 17), np.float32))
    run = ["run", wasm, "--input", f"x={tmp_path / 'x.npy'}", "--output", tmp_path / "y.npz"]
    done = invoke(*run, "--untrusted", "--limit-memory", "700", "--limit-seconds", "20")
    assert done.exit_code == 0, done.output
    done = invoke(*run, "--limit-seconds", "20")
    assert done.exit_code == 2
    assert "untrusted graphs only" in done.stderr
    done = invoke(*run, "--sha256", "0" * 64)
    assert done.exit_code == 2
    assert "another file than was expected" in done.stderr
    done = invoke(*run, "--untrusted", "--limit-memory", "1")
    assert done.exit_code == 3
    assert "memory" in done.stderr


def test_slow_products_are_named(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("Conv", ["x", "w"], ["y"])], {"x": [1, 3, 6, 6, 6], "w": [4, 3, 3, 3, 3]}, ["y"]
    )
    onnx.save(model, tmp_path / "m.onnx")
    done = invoke("compile", tmp_path / "m.onnx", "-o", tmp_path / "m.wasm")
    assert done.exit_code == 0, done.output
    said = " ".join(done.stderr.split())
    assert "slow, because their rule is not made for products: conv3d" in said
    facts = json.loads(invoke("inspect", tmp_path / "m.wasm", "--json").stdout)
    assert facts["ops_slow"] == 1
