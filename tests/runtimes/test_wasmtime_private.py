"""What running relies on that Wasmtime does not promise: a new Wasmtime without it fails here, by name."""

from __future__ import annotations

import pytest
import wasmtime
from wasmtime import _ffi

from wasmgraph.runtimes.wasmtime_private import SharedMemory, call

_TEXT = """(module
  (func (export "sum") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add)
  (func (export "nothing"))
  (func (export "float") (result f32) f32.const 1)
  (func (export "trap") (result i32) unreachable))"""


def test_the_names_are_there() -> None:
    for name in ("wasmtime_val_t", "wasm_trap_t", "wasmtime_func_call", "WASMTIME_I32"):
        assert hasattr(_ffi, name), f"wasmtime._ffi.{name}: calls rely on it"
    for name in ("wasmtime_extern_t", "wasmtime_extern_union", "WASMTIME_EXTERN_SHAREDMEMORY"):
        assert hasattr(_ffi, name), f"wasmtime._ffi.{name}: shared memories rely on it"
    assert hasattr(wasmtime.Store, "_context"), "calls rely on it"
    for kind in (wasmtime.WasmtimeError, wasmtime.Trap):
        assert hasattr(kind, "_from_ptr"), f"{kind.__name__}._from_ptr: failed calls rely on it"


def test_calls_do_what_wasmtime_s_own_do() -> None:
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    exports = wasmtime.Instance(store, wasmtime.Module(engine, _TEXT), []).exports(store)
    assert hasattr(exports["sum"], "_func"), "calls rely on it"
    assert call(store, exports["sum"], (40, 2), 1) == exports["sum"](store, 40, 2) == 42
    assert call(store, exports["nothing"], (), 0) is None
    with pytest.raises(wasmtime.Trap, match="unreachable"):
        call(store, exports["trap"], (), 1)
    with pytest.raises(wasmtime.WasmtimeError, match="no i32"):
        call(store, exports["float"], (), 1)
    with pytest.raises(wasmtime.WasmtimeError):
        call(store, exports["sum"], (1,), 1)


def test_a_shared_memory_can_be_imported() -> None:
    config = wasmtime.Config()
    config.wasm_threads = True
    config.shared_memory = True
    engine = wasmtime.Engine(config)
    store = wasmtime.Store(engine)
    module = wasmtime.Module(engine, '(module (import "env" "memory" (memory 1 2 shared)))')
    memory = SharedMemory(engine, wasmtime.MemoryType(wasmtime.Limits(1, 2), shared=True))
    wasmtime.Instance(store, module, [memory])
