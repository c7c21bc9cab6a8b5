"""Changes that a verdict must catch, as edits of a revision's files."""

from __future__ import annotations

from pathlib import Path

_FUEL_PER_TURN = 11  # fuel of an iteration of the loop below, as Wasmtime counts it

_SLOWER = """        import time

        began = time.perf_counter()
        self._call("wasmgraph_run")
        until = began + {factor} * (time.perf_counter() - began)
        while time.perf_counter() < until:
            pass
"""
_LOWER_BIAS = """    from onnx import numpy_helper

    last = [node for node in proto.graph.node if node.op_type == "Gemm"][-1]
    bias = next(constant for constant in proto.graph.initializer if constant.name == last.input[2])
    values = numpy_helper.to_array(bias).copy()
    values[{label}] -= {by}
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
"""
_SPILLING = """    if target.name == "wasm32-simd128" and int(schedule.get(reduction[-1]).extent) % 8 == 0:
        last_axis, unrolled = schedule.split(reduction[-1], [None, 8])
        schedule.unroll(unrolled)
        reduction = [*reduction[:-1], last_axis]
"""


def _edit(root: Path, file: str, old: str, new: str) -> None:
    path = root / file
    text = path.read_text()
    if text.count(old) != 1:
        raise RuntimeError(
            f"{file} holds {old!r} {text.count(old)} times: trials/mutations.py is out of date"
        )
    path.write_text(text.replace(old, new))


def more_work(root: Path, step: int, fuel: int) -> None:
    """Make one call of the plan use about ``fuel`` more fuel."""
    entry = "wasmgraph/compiler/link/csrc/entry.c"
    loop = "static void more(int32_t turns) {\n    for (volatile int32_t i = 0; i < turns; ++i) {}\n}\n\n"
    signature = "static int32_t step(byte *arena, int32_t index SHARE) {\n    (void)arena;\n"
    call = f"    if (index == {step}) more({max(1, round(fuel / _FUEL_PER_TURN))});\n"
    _edit(root, entry, signature, loop + signature + call)


def slower(root: Path, factor: float) -> None:
    """Make every inference in Wasmtime take ``factor`` times as long, with the same amount of work."""
    runtime = "wasmgraph/runtimes/wasmtime.py"
    _edit(root, runtime, '        self._call("wasmgraph_run")\n', _SLOWER.format(factor=factor))


def lower_bias(root: Path, label: int, by: float) -> None:
    """Lower the bias of one class in a classifier's last layer."""
    before = "    module, inputs, outputs, constant, checks = frontend.convert("
    _edit(
        root,
        "wasmgraph/compiler/importing/__init__.py",
        before,
        _LOWER_BIAS.format(label=label, by=by) + before,
    )


def spilling(root: Path) -> None:
    """Unroll SIMD128's inner loop by eight: fewer instructions, which spill."""
    before = "    vectorize(schedule, own_lane, target)\n"
    _edit(root, "wasmgraph/compiler/schedule/tiled.py", before, _SPILLING + before)
