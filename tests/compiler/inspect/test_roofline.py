from __future__ import annotations

import time

import pytest

import wasmgraph as wg
from wasmgraph.compiler.inspect.roofline import build_roofline
from wasmgraph.measure.profile import (
    Profile,
    Roofline,
    StepTime,
    by_kernel,
    profile_steps,
    roofline_share,
    time_share_without,
)


@pytest.mark.parametrize(
    "target", ["wasm32", "wasm32-simd128", "wasm32-relaxed-simd", "native", "native-128"]
)
def test_a_roofline_runs_all_its_steps(target: str) -> None:
    roof = build_roofline(target)
    assert [s.kernel for s in roof.manifest.steps] == ["chains", "tile", "fill", "stream"]
    with wg.load(roof) as session:
        for index in range(4):
            session.run_step(index)
        with pytest.raises(wg.WasmgraphError, match="returned -1"):
            session.run_step(4)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_a_roofline(threads: int) -> None:
    roof = build_roofline("wasm32-simd128-threads")
    with wg.load(roof, threads=threads) as session:
        for index in range(4):
            session.run_step(index)


def test_a_profile_goes_on_for_as_long_as_it_is_told(small_artifact, small_input) -> None:
    artifact = wg.Artifact.open(small_artifact("wasm32-simd128"))
    roof = build_roofline("wasm32-simd128")
    shares: list[float] = []
    with wg.load(artifact) as session, wg.load(roof) as limit:
        steps = artifact.manifest.steps, roof.manifest.steps
        began = time.perf_counter()
        profile_steps(
            session, {"x": small_input}, steps[0], limit, steps[1], 1, seconds=0.5, done=shares.append
        )
    assert time.perf_counter() - began >= 0.5
    assert len(shares) >= 2
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
def test_a_profile_covers_every_call(target: str, small_artifact, small_input) -> None:
    artifact = wg.Artifact.open(small_artifact(target))
    steps = artifact.manifest.steps
    roof = build_roofline(target)
    with wg.load(artifact) as session, wg.load(roof) as limit:
        profile = profile_steps(session, {"x": small_input}, steps, limit, roof.manifest.steps, 3)
    rows = by_kernel(profile)
    assert sum(row.calls for row in rows) == len(steps)
    assert sum(row.share for row in rows) == pytest.approx(1)
    first = next(s for s in artifact.manifest.steps if s.operator.startswith("conv2d"))
    assert first.flops == 2 * 10 * 9 * 11 * 27
    share = roofline_share(profile, ["direct-conv2d", "pointwise-conv2d", "winograd-conv2d"])
    assert share is not None
    assert 0 < share < 2
    assert roofline_share(profile, ["no-such-rule"]) is None
    assert 0 < time_share_without(profile, "conv2d") < 1


@pytest.mark.parametrize(
    ("flops", "traffic", "product", "slow"),
    [
        (10**9, 1000, True, False),  # a third of the roofline
        (10**9 // 2, 1000, True, True),  # a sixth
        (10**9 // 2, 1000, False, False),
        (10**6, 10**8, True, False),  # a matrix × vector, whose bound is memory
    ],
)
def test_a_product_under_a_quarter_of_its_roofline_is_slow(
    flops: int, traffic: int, product: bool, slow: bool
) -> None:
    step = StepTime("k", "matmul", "dense", flops, traffic, product, seconds=0.03)
    (row,) = by_kernel(Profile([step], Roofline(flops_per_s=1e11, bytes_per_s=1e10)))
    assert row.slow == slow
