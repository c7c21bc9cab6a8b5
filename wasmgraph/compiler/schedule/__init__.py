"""Stage 4: schedules every kernel's loops for the target, by the first rule that fits.

A rule reads the properties of the :class:`~wasmgraph.targets.Target` (lanes, tile), never its name. A
kernel that no rule fits is compiled with TVM's original loops, which is correct but slow. Results count it
under :data:`FALLBACK`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError
from tvm.tirx import IterVar

from wasmgraph.compiler.operators.sequential import is_sequential
from wasmgraph.compiler.schedule.attention import schedule_attention
from wasmgraph.compiler.schedule.blocks import begin_with_infinity, blocks, narrowed
from wasmgraph.compiler.schedule.decisions import Decision, Scheduled, Vector
from wasmgraph.compiler.schedule.elementwise import schedule_elementwise
from wasmgraph.compiler.schedule.few_bits import schedule_few_bits
from wasmgraph.compiler.schedule.recurrent import schedule_recurrent
from wasmgraph.compiler.schedule.reduction import schedule_reduction
from wasmgraph.compiler.schedule.rows import schedule_rows
from wasmgraph.compiler.schedule.tiled import (
    schedule_conv2d,
    schedule_dense,
    schedule_open,
    schedule_pointwise,
    schedule_product,
)
from wasmgraph.compiler.schedule.winograd import schedule_winograd
from wasmgraph.compiler.sizes import is_open
from wasmgraph.targets import Target

# A rule takes a decision to follow, or None to make its own. It returns the finished schedule and the
# decision, or None if the rule does not fit; the given schedule is then no longer usable.
Rule = Callable[[Schedule, Target, Decision | None], Scheduled | None]


def _as_written(schedule: Schedule, target: Target, decision: Decision | None) -> Scheduled | None:
    """A kernel each of whose turns depends on those before it."""
    return (schedule, Vector(1)) if is_sequential(schedule.mod["main"]) else None


RULES: Mapping[str, Rule] = {
    "sequential": _as_written,
    "recurrent": schedule_recurrent,
    "few-bits": schedule_few_bits,
    "open-tiles": schedule_open,
    "winograd-conv2d": schedule_winograd,
    "pointwise-conv2d": schedule_pointwise,
    "direct-conv2d": schedule_conv2d,
    "dense": schedule_dense,
    "attention": schedule_attention,
    "product": schedule_product,
    "reduction": schedule_reduction,
    "row-reduction": schedule_rows,
    "elementwise": schedule_elementwise,
}
FALLBACK = "fallback"
# The rules that are made for matrix products and convolutions. Under any other, one is slow.
PRODUCT_RULES = (
    "open-tiles",
    "winograd-conv2d",
    "pointwise-conv2d",
    "direct-conv2d",
    "dense",
    "attention",
    "product",
    "recurrent",
    "few-bits",
)


@dataclass(frozen=True)
class Chosen:
    """The rule that scheduled a kernel, and the decision that it followed; None for a kernel without a
    rule."""

    rule: str
    decision: Decision | None


def schedule_kernel(
    kernel: tirx.PrimFunc, target: Target, decision: Decision | None = None
) -> tuple[tirx.PrimFunc, Chosen]:
    """Schedule a kernel by the first rule that fits. The rule follows ``decision`` if this is of the rule's
    type."""
    for name, rule in RULES.items():
        try:
            scheduled = rule(Schedule(tvm.IRModule({"main": kernel})), target, decision)
        except (ScheduleError, tvm.error.InternalError):
            continue  # a primitive's own precondition failed: the rule does not fit this kernel
        if scheduled is not None:
            schedule, followed = scheduled
            return schedule.mod["main"], Chosen(name, followed)
    return _begun(kernel) if is_open(kernel) else kernel, Chosen(FALLBACK, None)


def _begun(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
    """A kernel whose sums begin before their loops. TVM lets them begin in the first turn, and an open
    number of turns may be 0."""
    schedule = Schedule(tvm.IRModule({"main": kernel}))
    for block in blocks(schedule):
        axes = schedule.get(block).iter_vars
        loops = schedule.get_loops(block)
        reduced = [n for n, axis in enumerate(axes) if axis.iter_type != IterVar.DataPar]
        if reduced and len(loops) == len(axes):
            schedule.decompose_reduction(block, loops[reduced[0]])
    return schedule.mod["main"]


def schedule_module(
    mod: tvm.IRModule, target: Target, decisions: Mapping[str, Decision] | None = None
) -> tuple[tvm.IRModule, dict[str, Chosen]]:
    """Schedule every kernel of a module. If there is a decision under a kernel's name, the rule follows it.

    Returns the module, and the rule and decision of each kernel.
    """
    scheduled = tvm.IRModule(dict(mod.functions.items()), attrs=mod.attrs)
    chosen: dict[str, Chosen] = {}
    for gvar, function in mod.functions.items():
        if isinstance(function, tirx.PrimFunc):
            name = gvar.name_hint
            function = narrowed(function) if is_open(function) else function
            kernel, chosen[name] = schedule_kernel(function, target, (decisions or {}).get(name))
            kernel = kernel.with_body(begin_with_infinity(kernel.body))
            scheduled.update_func(scheduled.get_global_var(name), kernel)
    return scheduled, chosen
