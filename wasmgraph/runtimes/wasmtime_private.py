"""All uses of Wasmtime's private API; tests/runtimes/test_wasmtime_private.py checks that it exists."""

from __future__ import annotations

import ctypes

import wasmtime
from wasmtime import _ffi as ffi


class SharedMemory(wasmtime.SharedMemory):  # type: ignore[misc]
    """Works around a bug in Wasmtime 50: its class passes a pointer to its pointer, and instantiation
    fails."""

    def _as_extern(self) -> ffi.wasmtime_extern_t:
        union = ffi.wasmtime_extern_union(sharedmemory=self.ptr())
        return ffi.wasmtime_extern_t(ffi.WASMTIME_EXTERN_SHAREDMEMORY, union)


def call(
    store: wasmtime.Store, function: wasmtime.Func, arguments: tuple[int, ...], results: int
) -> int | None:
    """Do the same as ``function(store, *arguments)`` for 32-bit integers and ``results``, 0 or 1. That call
    queries the function's type every time, which costs as much as the rest of a call; here Wasmtime checks
    types.

    Raises
    ------
    wasmtime.WasmtimeError, wasmtime.Trap
    """
    given = (ffi.wasmtime_val_t * len(arguments))()
    for place, number in zip(given, arguments, strict=True):
        place.kind, place.of.i32 = ffi.WASMTIME_I32, number
    taken = (ffi.wasmtime_val_t * results)()
    trap = ctypes.POINTER(ffi.wasm_trap_t)()
    error = ffi.wasmtime_func_call(
        store._context(),
        ctypes.byref(function._func),
        given,
        len(arguments),
        taken,
        results,
        ctypes.byref(trap),
    )
    if error:
        raise wasmtime.WasmtimeError._from_ptr(error)
    if trap:
        raise wasmtime.Trap._from_ptr(trap)
    if not results:
        return None
    if taken[0].kind != ffi.WASMTIME_I32.value:
        raise wasmtime.WasmtimeError("the result is no i32")
    return int(taken[0].of.i32)
