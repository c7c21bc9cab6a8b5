from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax

from wasmgraph.compiler.plan import COPY, _aligned, _Buffer, _pack, make_plan

NO_KERNELS = SimpleNamespace(dims={}, workspaces={})


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 20)), max_size=40))
def test_live_buffers_never_overlap(wanted: list[tuple[int, int, int]]) -> None:
    buffers = [_Buffer(n, min(a, b), max(a, b)) for n, a, b in wanted]
    total = _pack(buffers)
    assert total <= sum(_aligned(b.nbytes) for b in buffers)
    for i, one in enumerate(buffers):
        assert one.offset % 64 == 0
        assert one.offset + one.nbytes <= total
        for other in buffers[i + 1 :]:
            both_live = one.first <= other.last and other.first <= one.last
            apart = one.offset + one.nbytes <= other.offset or other.offset + other.nbytes <= one.offset
            assert apart or not both_live


def test_buffers_of_disjoint_lives_share_bytes() -> None:
    buffers = [_Buffer(640, step, step) for step in range(10)]
    assert _pack(buffers) == 640


def _main(build: object) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(build(x))
    return builder.get()


def test_outputs_that_no_kernel_writes_are_copied() -> None:
    constant = relax.const(np.ones(4, np.float32))
    plan, constants = make_plan(_main(lambda x: relax.Tuple([x, constant, x])), NO_KERNELS)
    assert [call.kernel for call in plan.calls] == [COPY] * 3
    assert [call.copied_bytes for call in plan.calls] == [16] * 3
    assert len({*plan.inputs, *plan.outputs}) == 4
    assert len(constants) == len(plan.parameters) == 1


def test_equal_constants_are_stored_once() -> None:
    a, b = (relax.const(np.ones(4, np.float32)) for _ in range(2))
    plan, _ = make_plan(_main(lambda _: relax.Tuple([a, b])), NO_KERNELS)
    assert plan.param_bytes == 64
