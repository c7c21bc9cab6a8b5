"""The threads of a graph in Wasmtime. Each has a store and an instance; they share one memory.

The code that they run in the module is ``compiler/link/csrc/pool.c``.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import wasmtime

from wasmgraph.abi import LOAD, STACK_POINTER
from wasmgraph.errors import ExecutionError, UsageError
from wasmgraph.runtimes.wasmtime_engine import EngineConfig, engine, new_store
from wasmgraph.runtimes.wasmtime_private import SharedMemory, call
from wasmgraph.runtimes.wasmtime_wasi import instantiate
from wasmgraph.wasm.wasmfile import PAGE_BYTES, Module

_PATIENCE_S = 5.0  # how long to wait for workers that were told to end
_RETURNING = ("wasmgraph_run", "wasmgraph_step", "wasmgraph_worker", LOAD)


@dataclass
class Thread:
    """An instance of the module, and the address where its stack begins (the stack grows down); 0 for a
    module without other threads."""

    store: wasmtime.Store
    exports: Any
    stack_top: int

    def call(self, name: str, *arguments: int) -> int | None:
        """Call an exported function. After a trap, empty the stack and release the threads that wait for
        this one.

        Raises
        ------
        wasmtime.WasmtimeError, wasmtime.Trap
        """
        try:
            return call(self.store, self.exports[name], arguments, int(name in _RETURNING))
        except (wasmtime.WasmtimeError, wasmtime.Trap):
            if self.stack_top:
                self.exports[STACK_POINTER].set_value(self.store, self.stack_top)
                self.exports["wasmgraph_fail"](self.store)
            raise


@dataclass
class Condition:
    """State that the caller and the workers share: how often the caller called, which workers trapped in
    the last call and with which error, and whether a worker cannot even wait for work."""

    calls: int = 0
    traps: list[str] = field(default_factory=list)
    broken: bool = False


class Pool:
    """A pool of ``threads`` instances. The first is the caller's. The others run in worker threads, which
    are parked while there is no work. If the module imports WASI, the first instance can open ``folder``.

    Raises
    ------
    UsageError
        The system cannot start another thread.
    """

    def __init__(
        self,
        config: EngineConfig,
        module: wasmtime.Module,
        shape: Module,
        threads: int,
        where: str,
        folder: Path | None = None,
    ) -> None:
        least, most = shape.shared_pages
        limits = wasmtime.Limits(least + threads - 1, most)
        self.memory = SharedMemory(engine(config), wasmtime.MemoryType(limits, shared=True))
        self._condition = Condition()
        self._instances: list[Thread] = []
        self._workers: list[threading.Thread] = []
        top = shape.global_values.get(STACK_POINTER, 0)
        for number in range(threads):
            store = new_store(config, most * PAGE_BYTES)
            if folder is None:
                exports = wasmtime.Instance(store, module, [self.memory]).exports(store)
            else:
                exports = instantiate(store, module, config, None if number else folder, self.memory)
            if number:  # each worker's stack is a page behind the module's own memory
                top = (least + number) * PAGE_BYTES
                exports[STACK_POINTER].set_value(store, top)
            exports["wasmgraph_init"](store)
            self._instances.append(Thread(store, exports, top))
        self.main = self._instances[0]
        if threads > 1:
            self.main.call("wasmgraph_threads", threads)
            try:
                for number, instance in enumerate(self._instances[1:], 1):
                    worker = threading.Thread(
                        target=_serve,
                        args=(instance, number, self._condition),
                        name=f"wasmgraph-{number}",
                        daemon=True,
                    )
                    worker.start()
                    self._workers.append(worker)
            except BaseException as error:
                self.close()
                if not isinstance(error, RuntimeError):
                    raise
                raise UsageError(f"{where}: {threads} threads cannot be started: {error}.") from error

    def call(self, name: str, *arguments: int) -> int | None:
        """Call an exported function on the caller's instance.

        Raises
        ------
        wasmtime.WasmtimeError, wasmtime.Trap
        ExecutionError
            A worker trapped.
        """
        condition = self._condition
        condition.calls += 1
        if condition.broken:
            raise ExecutionError("a thread of the graph cannot wait for work; load the artifact again")
        error = self.main.call(name, *arguments)
        if error and condition.traps:
            traps = "; ".join(condition.traps)
            condition.traps.clear()
            raise ExecutionError(traps)
        return error

    def close(self) -> None:
        """End the workers and release their stores and the memory, which must not be accessed afterwards.

        A worker that does not end within some seconds keeps its store, because it is still using it.
        """
        if not self._instances:
            return
        instances, workers = list(self._instances), list(self._workers)
        self._instances.clear()
        self._workers.clear()
        if workers:
            with suppress(wasmtime.WasmtimeError, wasmtime.Trap):
                self.main.call("wasmgraph_stop")
        deadline = time.monotonic() + _PATIENCE_S
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        for instance, thread in zip_longest(instances, [None, *workers]):
            if thread is None or not thread.is_alive():
                instance.store.close()
        self.memory.close()


def cause(error: Exception) -> str:
    """Return the last line of Wasmtime's message: the cause, which follows the backtrace."""
    return str(error).strip().splitlines()[-1].strip()


def _serve(instance: Thread, number: int, condition: Condition) -> None:
    """Run a worker. It holds no reference to its pool, so that a session that was not closed can be
    garbage-collected."""
    last = -1
    while True:
        try:
            instance.call("wasmgraph_worker")
            return
        except (wasmtime.WasmtimeError, wasmtime.Trap) as trap:
            condition.traps.append(f"thread {number}: {cause(trap)}")
            if condition.calls == last:  # it trapped again without having got work
                condition.broken = True
                return
            last = condition.calls
