"""Untrusted graphs: each session runs in a child process, which is killed if it exceeds a limit.

WebAssembly lets a module access nothing but its own memory. The child process bounds the memory and time
that the module uses. Tensors pass through memory shared with the child, so a call costs two more copies and
two short messages.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import sys
import weakref
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from wasmgraph.artifact import DTYPES, PlacedDim, check_computed, given
from wasmgraph.dims import Dim, bounds, from_json
from wasmgraph.errors import ExecutionError, LimitError, ProcessError, WasmgraphError, error_from
from wasmgraph.limits import Limits, child_environment
from wasmgraph.processes import Child
from wasmgraph.runtimes.base import LoadOptions, Session
from wasmgraph.tensors import Array, TensorSpec

_ALIGNMENT = 64
_COMMAND = ("-B", "-m", "wasmgraph.runtimes.untrusted_child")


class UntrustedSession(Session):
    """A graph in a child process. If the graph exceeds a limit or the child dies, the session is closed.

    Raises
    ------
    LimitError
        The graph exceeded a limit; the child has ended.
    """

    def __init__(self, path: Path, options: LoadOptions, limits: Limits) -> None:
        self._where, self._limits = str(path), limits
        shared = os.memfd_create("wasmgraph", os.MFD_ALLOW_SEALING)
        try:
            self._child = _start(self._where, shared)
            self._finalizer = weakref.finalize(self, self._child.close)
            request = {"path": str(path.resolve()), **asdict(options), **asdict(limits)}
            answer = self._ask("load", request=request)
            try:
                self._loaded = path, replace(options, sha256=str(answer["sha256"])), limits
                self._dims = tuple(PlacedDim(*said) for said in answer["dims"])
                bound = {dim.name: dim for dim in self._dims}
                inputs, outputs = (_specs(answer[side], bound) for side in ("inputs", "outputs"))
            except (KeyError, TypeError, ValueError, ArithmeticError) as error:
                raise ExecutionError(f"{path}: the child answered with no tensors ({error}).") from error
            super().__init__(inputs, outputs, given(self._dims))
            self._share(shared, tuple(spec.largest(bound) for spec in (*inputs, *outputs)))
            self._ask("map", shared=shared)
        except BaseException:
            if hasattr(self, "_finalizer"):
                self._finalizer()
            raise
        finally:
            os.close(shared)

    @property
    def process_id(self) -> int:
        """The child's process id."""
        return self._child.pid

    def _share(self, shared: int, specs: tuple[TensorSpec, ...]) -> None:
        """Lay out the tensors one after the other, in shared memory that the child cannot shrink."""
        offsets, size = layout(specs)
        if size > self._limits.memory_bytes:
            raise LimitError(
                f"{self._where}: its tensors take {size} bytes, {self._limits.memory_bytes} are allowed."
            )
        os.ftruncate(shared, max(size, 1))
        fcntl.fcntl(shared, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._memory, self._offsets = mmap.mmap(shared, max(size, 1)), offsets
        self._views = [] if self._dims else views(self._memory, specs, offsets)

    def _run(self, arrays: list[Array]) -> list[Array]:
        return self._run_at(arrays, {})

    def _run_at(self, arrays: list[Array], values: Mapping[str, int]) -> list[Array]:
        count = len(self.inputs)
        inputs = self._views[:count] or self._seen(self.inputs, self._offsets, values)
        for view, array in zip(inputs, arrays, strict=True):
            np.copyto(view, array)
        answer = self._ask("run", dims=dict(values))
        computed = [dim for dim in self._dims if dim.computed]
        if computed:
            values = {**values, **check_computed(computed, _numbers(answer.get("dims"), computed))}
        self.values = dict(values)
        outputs = self._views[count:] or self._seen(self.outputs, self._offsets[count:], values)
        return [view.copy() for view in outputs]

    def _seen(
        self, specs: tuple[TensorSpec, ...], offsets: list[int], values: Mapping[str, int]
    ) -> list[Array]:
        return views(self._memory, tuple(spec.at(values) for spec in specs), offsets[: len(specs)])

    def _run_step(self, index: int) -> None:
        self._ask("step", index=index)

    def _clone(self) -> Session:
        return UntrustedSession(*self._loaded)

    def _ask(self, verb: str, **operands: Any) -> dict[str, Any]:
        try:
            answer, _ = self._child.ask({"do": verb, **operands}, seconds=self._limits.wall_s)
        except ProcessError as error:
            raise self._epitaph(error) from error
        finally:
            if self._child.closed:  # it died or exceeded a limit, or the call was interrupted
                self._closed = True
                self._views = []
        if "error" in answer:
            raise error_from(answer)
        return answer

    def _epitaph(self, error: ProcessError) -> WasmgraphError:
        if error.late:
            return LimitError(f"{self._where} took longer than {self._limits.wall_s:g} s, and was ended.")
        if error.status == -signal.SIGPROF:
            return LimitError(
                f"{self._where} used more than {self._limits.cpu_s:g} s of processor time, and was ended."
            )
        if error.status in (-signal.SIGABRT, -signal.SIGKILL):
            allowed = f"{self._limits.memory_bytes:,} bytes"
            return LimitError(f"{self._where} was ended by the system; it may use {allowed} of memory.")
        return error

    def _release(self) -> None:
        self._views = []
        self._finalizer()


def layout(specs: tuple[TensorSpec, ...]) -> tuple[list[int], int]:
    """Return each tensor's offset in shared memory, and the total size."""
    offsets, end = [], 0
    for spec in specs:
        offsets.append(end)
        end += -(-spec.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def views(memory: mmap.mmap, specs: tuple[TensorSpec, ...], offsets: list[int]) -> list[Array]:
    """Return the tensors in shared memory as arrays."""
    return [
        np.frombuffer(memory, spec.dtype, int(np.prod(spec.static_shape)), offset).reshape(
            spec.static_shape
        )
        for spec, offset in zip(specs, offsets, strict=True)
    ]


def _start(where: str, shared: int) -> Child:
    return Child(
        [sys.executable, *_COMMAND],
        where,
        longest=0,
        pass_fds=(shared,),
        env=child_environment(),
        cwd="/",
    )


def _numbers(said: Any, dims: list[PlacedDim]) -> dict[str, int]:
    """Validate a child's values of dimensions."""
    values = said if isinstance(said, dict) else {}
    if any(type(values.get(dim.name)) is not int for dim in dims):
        raise ExecutionError(f"the child answered with the dimensions {said!r}.")
    return {dim.name: values[dim.name] for dim in dims}


def _specs(said: Any, dims: Mapping[str, Dim]) -> tuple[TensorSpec, ...]:
    """Validate a child's description of its tensors: it is untrusted, and may be any JSON value."""
    specs = tuple(
        TensorSpec(str(name), tuple(from_json(size) for size in shape), str(dtype))
        for name, shape, dtype in said
    )
    for spec in specs:
        if spec.dtype not in DTYPES or any(bounds(size, dims)[1] < 0 for size in spec.shape):
            raise ValueError(f"{spec.name!r} has shape {spec.shape} and dtype {spec.dtype!r}")
    return specs
