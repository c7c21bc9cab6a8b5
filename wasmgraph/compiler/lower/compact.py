"""Stage 6: local arrays as large as a turn of a loop needs them, where sizes are open.

``CompactBufferAllocation`` takes a guard of a tile's last elements (``4 * tile + lane < n``) for a bound of
what the tile uses. If n is open, the smaller of two numbers is then unknown, and an array as large as the
greatest number of its dtype is the result, or an overflow. So guards are hidden from it, and a tile is
whole.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Call
from tvm.ir.expr import StringImm
from tvm.s_tir import SBlock, SBlockRealize

from wasmgraph.compiler.sizes import is_open

_GUARD = "wasmgraph_guard"


def compact(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """TVM's pass ``CompactBufferAllocation``, for kernels of open sizes too."""

    def hide(block: SBlockRealize) -> SBlockRealize:
        if isinstance(block.predicate, tirx.IntImm):
            return block
        hidden = tirx.call_pure_extern("bool", _GUARD, block.predicate)
        return SBlockRealize(block.iter_values, hidden, block.block, block.span)

    def find(call: Call) -> tirx.PrimExpr:
        name = call.args[0] if call.args else None
        return call.args[1] if isinstance(name, StringImm) and name.value == _GUARD else call

    if not is_open(function):
        return _compacted(function)
    hidden = tvm_ffi.structural_map(function.body, [(SBlockRealize, hide)])
    done = _compacted(function.with_body(hidden))
    local: dict[tirx.Buffer, tirx.Buffer] = {}

    def widen(block: SBlock) -> SBlock:
        for buffer in block.alloc_buffers:
            local[buffer] = _closed(buffer)
        return block

    tvm_ffi.structural_map(done.body, [(SBlock, widen)])
    rewriters = [(Call, find), (tirx.Buffer, lambda buffer: local.get(buffer, buffer))]
    return done.with_body(tvm_ffi.structural_map(done.body, rewriters))


def _compacted(function: tirx.PrimFunc) -> tirx.PrimFunc:
    done: tirx.PrimFunc = s_tir.transform.CompactBufferAllocation()(tvm.IRModule({"main": function}))[
        "main"
    ]
    return done


def _closed(buffer: tirx.Buffer) -> tirx.Buffer:
    """The buffer, with the tile where its size is the smaller of a tile and all rows."""
    shape = [_tile(extent) for extent in buffer.shape]
    if all(new is old for new, old in zip(shape, buffer.shape, strict=True)):
        return buffer
    return tirx.decl_buffer(shape, buffer.dtype, buffer.name, scope=buffer.scope())


def _tile(extent: tirx.PrimExpr) -> tirx.PrimExpr:
    if isinstance(extent, tirx.Min):
        return next((side for side in (extent.a, extent.b) if isinstance(side, tirx.IntImm)), extent)
    return extent
