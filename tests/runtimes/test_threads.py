"""A graph's threads: they start, agree, park, survive a trap, and are gone when the session is."""

from __future__ import annotations

import gc
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

import wasmgraph as wg
from tests.runtimes.test_checks import POOL, RUN, SHARED, STEP, forge
from wasmgraph.artifact import Artifact, Manifest, Placed, Step, seal
from wasmgraph.compiler.link.library import Library, link_library
from wasmgraph.compiler.link.zig import compile_object
from wasmgraph.errors import ExecutionError, UsageError
from wasmgraph.runtimes import wasmtime_pool
from wasmgraph.targets import get_target
from wasmgraph.wasm.wasmfile import read_module

TARGET = "wasm32-simd128-threads"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no `node` on the PATH")


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("wasmgraph-")]


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.filterwarnings("ignore:.*processors wait")
def test_the_result_is_that_of_one_thread_to_the_bit(
    small_artifact: Callable[[str], Path], small_input: np.ndarray, threads: int
) -> None:
    with wg.load(small_artifact("wasm32-simd128")) as alone:
        expected = alone.run({"x": small_input})
    with wg.load(small_artifact(TARGET), threads=threads) as session:
        assert len(workers()) == threads - 1
        for _ in range(20):
            found = session.run({"x": small_input})
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])
    assert not workers()


def test_idle_workers_cost_nothing(small_artifact: Callable[[str], Path], small_input: np.ndarray) -> None:
    with wg.load(small_artifact(TARGET), threads=2) as session:
        session.run({"x": small_input})
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.1


def test_a_forgotten_session_ends_its_threads(small_artifact: Callable[[str], Path]) -> None:
    wg.load(small_artifact(TARGET), threads=2)
    gc.collect()
    assert not workers()


def test_more_threads_than_processors_are_said_not_refused(
    small_artifact: Callable[[str], Path], small_input: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmgraph.runtimes.base.cpu_count", lambda: 1)
    with pytest.warns(UserWarning, match="2 threads on 1 processors"):
        session = wg.load(small_artifact(TARGET), threads=2)
    session.run({"x": small_input})
    session.close()


def test_more_threads_than_there_are_stacks_for(small_artifact: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="at most 1025 threads; it cannot use 5000"):
        wg.load(small_artifact(TARGET), threads=5000)


def test_other_artifacts_have_one_thread(small_artifact: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="compiled for one thread"):
        wg.load(small_artifact("wasm32-simd128"), threads=2)


@needs_node
@pytest.mark.parametrize("threads", [1, 2])
def test_v8_gives_the_same_bits(
    small_artifact: Callable[[str], Path], small_input: np.ndarray, threads: int
) -> None:
    with wg.load(small_artifact("wasm32-simd128")) as alone:
        expected = alone.run({"x": small_input})
    with wg.load(small_artifact(TARGET), runtime="node", threads=threads) as session:
        for _ in range(5):
            found = session.run({"x": small_input})
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])


def test_a_thousand_sessions_leave_nothing(
    small_artifact: Callable[[str], Path], small_input: np.ndarray
) -> None:
    process, path = psutil.Process(), small_artifact(TARGET)

    def cycles(count: int) -> None:
        for _ in range(count):
            with wg.load(path, threads=2) as session:
                session.run({"x": small_input})

    cycles(50)  # allocators and caches reach their size
    before, mapped, threads = (
        process.memory_info(),
        len(process.memory_maps(grouped=False)),
        process.num_threads(),
    )
    cycles(1000)
    after = process.memory_info()
    assert not workers()
    assert process.num_threads() == threads
    assert after.rss - before.rss < 8 << 20
    assert after.vms - before.vms < 1 << 30  # one leaked memory reserves more
    assert len(process.memory_maps(grouped=False)) - mapped < 20


# What a trap does, with kernels that trap where the input says. Every thread leaves its mark in the sum.
FAULTY = """
typedef __INT32_TYPE__ int32_t;
_Alignas(64) float wasmgraph_arena[16];
extern int32_t wasmgraph_take(int32_t turns, int32_t threads, int32_t *end);
extern int32_t wasmgraph_barrier(int32_t threads);

static void phase(int32_t threads) {
    volatile int32_t here; /* on this thread's stack: a worker's lies behind everything */
    int32_t worker = (__UINTPTR_TYPE__)&here > (__UINTPTR_TYPE__)wasmgraph_arena;
    if (worker ? wasmgraph_arena[0] == 1 : wasmgraph_arena[0] == 2) __builtin_trap();
    for (int32_t end, turn; (turn = wasmgraph_take(100, threads, &end)) < 100;)
        __atomic_fetch_add((int32_t *)&wasmgraph_arena[8], end - turn, __ATOMIC_SEQ_CST);
}

int32_t wasmgraph_shared_step(int32_t index, int32_t threads) {
    *(volatile int32_t *)&wasmgraph_arena[8] = 0;
    if (wasmgraph_barrier(threads)) return -1;
    phase(threads);
    if (wasmgraph_barrier(threads)) return -1;
    wasmgraph_arena[2] = *(volatile int32_t *)&wasmgraph_arena[8];
    return wasmgraph_barrier(threads);
}
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose input 1 traps in the workers, 2 in the caller; its output: turns taken."""
    directory = tmp_path_factory.mktemp("faulty")
    target = get_target(TARGET)
    (directory / "faulty.c").write_text(FAULTY)
    compile_object(directory / "faulty.c", directory / "faulty.o", target)
    linked = link_library(Library([directory / "faulty.o"], 4096), directory, target)
    with linked.open("rb") as stream:
        base = read_module(stream).global_values["wasmgraph_arena"]
    manifest = Manifest(
        schema=1,
        model_name="faulty",
        model_sha256="",
        weights="none",
        description={},
        target=TARGET,
        kind="wasm",
        features=target.features,
        cpu_features=(),
        inputs=(Placed("x", (1,), "float32", base),),
        outputs=(Placed("y", (1,), "float32", base + 8),),
        arena_bytes=64,
        param_bytes=0,
        params="embedded",
        steps=(Step("faulty", "faulty", "fallback", 0, 0),),
        kernels=1,
        ops_scheduled=0,
        ops_fallback=1,
        versions={},
    )
    seal(linked, manifest)
    return Artifact.open(linked).path


def value(number: float) -> dict[str, np.ndarray]:
    return {"x": np.array([number], np.float32)}


@pytest.mark.parametrize("runtime", ["wasmtime", pytest.param("node", marks=needs_node)])
@pytest.mark.parametrize("where", [1, 2])
@pytest.mark.filterwarnings("ignore:.*processors wait")
def test_a_trap_in_any_thread_ends_the_run_and_the_session_lives_on(
    faulty: Path, where: int, runtime: str
) -> None:
    with wg.load(faulty, runtime=runtime, threads=3) as session:
        for _ in range(30):
            assert session.run(value(0))["y"] == 100
            with pytest.raises(ExecutionError, match="unreachable"):
                session.run(value(where))
        assert session.run(value(0))["y"] == 100
    assert not workers()


@pytest.mark.filterwarnings("ignore:.*processors wait")
def test_a_session_can_be_closed_after_a_trap(faulty: Path) -> None:
    for where in (1, 2):
        session = wg.load(faulty, threads=3)
        with pytest.raises(ExecutionError, match="trapped"):
            session.run(value(where))
        session.close()
        session.close()
        with pytest.raises(UsageError, match="closed"):
            session.run(value(0))
    assert not workers()


# Workers sleep until they are stopped. The second one, whose stack is the second page behind the module's
# 2000, traps at once, and again.
BROKEN = POOL.replace(
    '(func (export "wasmgraph_worker") (result i32) i32.const 0)',
    """(func (export "wasmgraph_worker") (result i32)
      (if (i32.eq (global.get 0) (i32.const 131203072)) (then unreachable))
      (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const WAIT)))""",
).replace('(func (export "wasmgraph_stop"))', '(func (export "wasmgraph_stop") STOP)')
STOPPING = """(i32.store (i32.const 0) (i32.const 1))
  (drop (memory.atomic.notify (i32.const 0) (i32.const -1)))"""


@pytest.mark.filterwarnings("ignore:.*processors wait")
@pytest.mark.parametrize(
    ("wait", "stop", "longest_s"),
    [("-1", STOPPING, 1.0), ("2000000000", "", 1.5), ("-1", f"{STOPPING} unreachable", 1.0)],
    ids=["one-broke", "one-does-not-stop", "stopping-traps"],
)
def test_closing_does_not_wait_for_ever(
    tmp_path: Path,
    small_artifact: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    wait: str,
    stop: str,
    longest_s: float,
) -> None:
    monkeypatch.setattr(wasmtime_pool, "_PATIENCE_S", 0.3)
    pool = BROKEN.replace("WAIT", wait).replace("STOP", stop)
    path = forge(
        tmp_path / "broken.wasm", small_artifact("wasm32"), f"(module {SHARED} {RUN} {STEP} {pool})"
    )
    session = wg.load(path, threads=4)
    deadline = time.monotonic() + 5
    while len(workers()) > 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(workers()) == 2
    began = time.monotonic()
    session.close()
    assert time.monotonic() - began < longest_s
    for worker in workers():
        worker.join(5)
    assert not workers()
