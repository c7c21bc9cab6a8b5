"""Queries and transformations of a kernel's blocks that the rules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call
from tvm.ir.expr import TensorLoad
from tvm.s_tir import SBlock, Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.sym import Analyzer
from tvm.tirx import Add, BufferStore, FloatImm, FloorDiv, FloorMod, IndexMap, IterVar, const

from wasmgraph.compiler.sizes import size_of
from wasmgraph.dims import Shape, Size
from wasmgraph.targets import Target

# Makes LoopPartition peel the remainder of a non-dividing split, so that the main loop has no guard.
PEEL = "pragma_loop_partition_hint"
# Marks a loop whose iterations may run on different threads, together with all marked loops around it.
SHARE = "wasmgraph_share"
# Marks the outermost loop over the tiles of pixels that use one block of weights; the value is the number
# of such loops. While a tile is computed, its share of the next block is fetched
# (``compiler/lower/prefetch.py``).
FETCH_AHEAD = "wasmgraph_fetch_ahead"


def blocks(schedule: Schedule) -> list[SBlockRV]:
    """All computing blocks, in program order."""
    found: list[SBlockRV] = schedule.get_child_blocks(schedule.get_sblock("root"))
    return found


def find(schedule: Schedule, name: str) -> SBlockRV | None:
    """The block with that name, or None."""
    for block in blocks(schedule):
        if schedule.get(block).name_hint == name:
            return block
    return None


def reduces(schedule: Schedule, block: SBlockRV) -> bool:
    """Whether a block has reduction axes."""
    return any(axis.iter_type != IterVar.DataPar for axis in schedule.get(block).iter_vars)


def conditional(schedule: Schedule, block: SBlockRV) -> bool:
    """Whether a block chooses between values, as padding does, or by its axes."""
    held = schedule.get(block)
    axes = [axis.var for axis in held.iter_vars]
    found = []

    def note(call: Call) -> Call:
        found.append(isinstance(call.op, tvm.ir.Op) and call.op.name == "prim.if_then_else")
        return call

    def compare(choice: tirx.Select) -> tirx.Select:
        plain = tvm_ffi.structural_map(
            choice.condition, [(TensorLoad, lambda load: tirx.const(0, load.ty.dtype))]
        )
        used = tirx.analysis.undefined_vars(plain)
        found.append(any(variable.same_as(axis) for variable in used for axis in axes))
        return choice

    tvm_ffi.structural_map(held.body, [(Call, note), (tirx.Select, compare)])
    return any(found)


def reads(schedule: Schedule, block: SBlockRV) -> int:
    """The number of places in other blocks' expressions that read a block's result."""
    written = schedule.get(block).writes[0].source
    found = []

    def note(load: TensorLoad) -> TensorLoad:
        found.append(load.source.same_as(written))
        return load

    for other in blocks(schedule):
        if schedule.get(other).name_hint != schedule.get(block).name_hint:
            tvm_ffi.structural_map(schedule.get(other).body, [(TensorLoad, note)])
    return sum(found)


def output(schedule: Schedule) -> SBlockRV | None:
    """The block that writes the kernel's output, if there is just one."""
    written = schedule.get_output_blocks(schedule.get_sblock("root"))
    return written[0] if len(written) == 1 else None


def reindex(schedule: Schedule, block: SBlockRV, axes: Callable[..., tuple[Any, ...]]) -> Schedule:
    """Replace the axes of ``block`` by those that ``axes`` computes from them; return a new schedule.

    ``transform_block_layout`` leaves indices such as ``(g * 8 + c) // 8``, on which region inference
    fails. They are simplified with the ranges of the new axes.
    """
    rank = len(schedule.get(block).iter_vars)
    schedule.transform_block_layout(block, IndexMap.from_func(axes, ndim=rank))
    analyzer = Analyzer()
    for axis in schedule.get(block).iter_vars:
        analyzer.bind(axis.var, axis.dom)
    kernel = schedule.mod["main"]
    body = tvm_ffi.structural_map(kernel.body, [((FloorDiv, FloorMod, Add), analyzer.simplify)])
    return Schedule(tvm.IRModule({"main": kernel.with_body(body)}))


def share(schedule: Schedule, *loops: LoopRV) -> None:
    """Mark loops, from the outermost of a nest inwards, whose iterations do not depend on each other."""
    for loop in loops:
        schedule.annotate(loop, SHARE, 1)


def extent_of(schedule: Schedule, loop: LoopRV) -> Size:
    """How often a loop turns."""
    return size_of(schedule.get(loop).extent)


def axis_sizes(schedule: Schedule, block: SBlockRV, spatial: bool = True) -> Shape:
    """The sizes of a block's axes: those that are not reduced, or those that are."""
    axes = schedule.get(block).iter_vars
    return tuple(
        size_of(axis.dom.extent) for axis in axes if (axis.iter_type == IterVar.DataPar) == spatial
    )


def inline_between(schedule: Schedule, producer: SBlockRV, last: SBlockRV) -> None:
    """Inline every element-wise block after ``producer`` into ``last``."""
    order = blocks(schedule)
    names = [schedule.get(block).name_hint for block in order]
    first = names.index(schedule.get(producer).name_hint)
    end = names.index(schedule.get(last).name_hint)
    for block in order[first + 1 : end]:
        schedule.compute_inline(block)


def vectorize_copy(schedule: Schedule, block: SBlockRV, lanes: int) -> None:
    """Schedule an element-wise block with its own loops: vectorise the innermost dimension."""
    loops: list[LoopRV] = schedule.get_loops(block)
    if not loops:
        return  # a scalar
    share(schedule, *loops[:-1])
    extent = extent_of(schedule, loops[-1])
    if isinstance(extent, int) and extent % lanes == 0 and extent > 1:
        _, inner = schedule.split(loops[-1], [None, lanes])
        schedule.vectorize(inner)


def vectorize(schedule: Schedule, loop: LoopRV, target: Target) -> None:
    """Vectorise a loop over a tile's channels: as one vector, or as several if vectors must have the width
    of a register."""
    if target.exact_vectors and extent_of(schedule, loop) > target.lanes:
        several, loop = schedule.split(loop, [None, target.lanes])
        schedule.unroll(several)
    schedule.vectorize(loop)


def narrowed(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
    """A kernel of open sizes with indices of 32 bits. TVM's own pass cannot know that they suffice; all
    tensors lie in a memory of 4 GiB."""
    try:
        found: tirx.PrimFunc = tirx.transform.ForceNarrowIndexToInt32()(tvm.IRModule({"main": kernel}))[
            "main"
        ]
    except (tvm.error.InternalError, ValueError):
        return kernel  # it has numbers of 64 bits among its data
    return found


def begin_with_infinity(body: Any) -> Any:
    """Initialise maxima with -inf and minima with inf; padding of a maximum is -inf too.

    TVM initialises them with the largest finite numbers, which gives wrong results for infinities. Some
    schedule primitives recognise only TVM's form, so this runs after all of them.
    """

    def padding(value: FloatImm) -> FloatImm:
        least = value.value == np.finfo(str(value.ty.dtype)).min
        return const(-np.inf, value.ty.dtype) if least else value

    def infinite(store: Any) -> Any:
        value = store.value
        if not isinstance(value, FloatImm) or abs(value.value) != np.finfo(str(value.ty.dtype)).max:
            return store
        limit = const(np.copysign(np.inf, value.value), value.ty.dtype)
        return BufferStore(store.buffer, limit, store.indices)

    def rewrite(block: SBlock) -> SBlock:
        beginning = block.init
        inner = block.body
        if beginning is not None:
            beginning = tvm_ffi.structural_map(beginning, [(BufferStore, infinite)])
        if block.name_hint == "pad_temp":  # topi's name for the padded input of a pooling
            inner = tvm_ffi.structural_map(inner, [(FloatImm, padding)])
        if block.name_hint.endswith("_init"):
            inner = tvm_ffi.structural_map(inner, [(BufferStore, infinite)])
        return SBlock(
            block.iter_vars,
            block.reads,
            block.writes,
            block.name_hint,
            inner,
            beginning,
            block.alloc_buffers,
            block.match_buffers,
            block.annotations,
        )

    return tvm_ffi.structural_map(body, [(SBlock, rewrite)])
