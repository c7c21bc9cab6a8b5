"""Stage 4: every kernel gets a loop nest that suits the target, by the first rule that fits.

A rule reads the properties of the :class:`~wasmgraph.targets.Target` (lanes, tile), never its
name. A kernel that no rule takes is compiled as TVM wrote it, correct and slow; it is counted
under :data:`FALLBACK` wherever results are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tvm
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError

from wasmgraph.compiler.schedule.blocks import begin_with_infinity
from wasmgraph.compiler.schedule.elementwise import schedule_elementwise
from wasmgraph.compiler.schedule.reduction import schedule_reduction
from wasmgraph.compiler.schedule.rows import schedule_rows
from wasmgraph.compiler.schedule.tiled import schedule_conv2d, schedule_dense, schedule_pointwise
from wasmgraph.compiler.schedule.winograd import schedule_winograd
from wasmgraph.targets import Target

# Returns the finished schedule, or None if the rule does not fit; the one it was given is then spoilt.
Rule = Callable[[Schedule, Target], Schedule | None]

RULES: Mapping[str, Rule] = {
    "winograd-conv2d": schedule_winograd,
    "pointwise-conv2d": schedule_pointwise,
    "direct-conv2d": schedule_conv2d,
    "dense": schedule_dense,
    "reduction": schedule_reduction,
    "row-reduction": schedule_rows,
    "elementwise": schedule_elementwise,
}
FALLBACK = "fallback"


def schedule_kernel(kernel: tirx.PrimFunc, target: Target) -> tuple[tirx.PrimFunc, str]:
    """Return the scheduled kernel and the name of the rule that did it."""
    for name, rule in RULES.items():
        try:
            schedule = rule(Schedule(tvm.IRModule({"main": kernel})), target)
        except (ScheduleError, tvm.error.InternalError):
            continue  # a primitive's own precondition failed: the rule does not fit this kernel
        if schedule is not None:
            return schedule.mod["main"], name
    return kernel, FALLBACK


def schedule_module(mod: tvm.IRModule, target: Target) -> tuple[tvm.IRModule, dict[str, str]]:
    """Schedule every kernel of a module; return it with each kernel's rule."""
    scheduled = tvm.IRModule(dict(mod.functions.items()), attrs=mod.attrs)
    rules: dict[str, str] = {}
    for gvar, function in mod.functions.items():
        if isinstance(function, tirx.PrimFunc):
            kernel, rules[gvar.name_hint] = schedule_kernel(function, target)
            kernel = kernel.with_body(begin_with_infinity(kernel.body))
            scheduled.update_func(scheduled.get_global_var(gvar.name_hint), kernel)
    return scheduled, rules
