"""Stage 3: Relax → Relax. One layout (NHWC), weights packed for the target, operators fused.

After these passes ``main`` is a straight line of ``call_tir``, ``reshape`` and tuple bindings
over static shapes, and every weight is a constant in the order in which its kernel reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir import Op
from tvm.relax.expr_functor import PyExprMutator, mutator

from wasmgraph.compiler import operators
from wasmgraph.compiler.constants import allocate, array_of, constant, is_in_file, let_go
from wasmgraph.compiler.relax.attention import GroupAttention
from wasmgraph.compiler.relax.layout import ChannelsLast
from wasmgraph.compiler.sizes import static_shape
from wasmgraph.targets import Target

# Operators that numpy applies to constants; TVM's FoldConstant would build and run a kernel for each.
_NUMPY: dict[str, Callable[[np.ndarray, relax.Call], np.ndarray]] = {
    "relax.permute_dims": lambda a, call: np.transpose(
        a, None if call.attrs.axes is None else [int(i) for i in call.attrs.axes]
    ),
    "relax.reshape": lambda a, call: np.reshape(a, static_shape(call)),
}

_INJECTIVE = 2  # Relax's pattern of operators that a product does not absorb
# Operators that only rename a tensor's dimensions: a step for them would copy needlessly.
_RESHAPES = ("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten")


def relax_passes(target: Target, winograd: bool, attention: bool) -> list[tvm.ir.transform.Pass]:
    """The passes, in order, for one target; ``winograd`` allows the algorithm where it pays, ``attention``
    the grouping of attention."""
    r = relax.transform
    return [
        r.DecomposeOpsForInference(),
        PlainReshapes(),
        ChannelsLast(),
        FoldLayout(),
        r.DeadCodeElimination(["main"]),
        r.EliminateCommonSubexpr(),
        r.CanonicalizeBindings(),
        r.FoldConstant(),
        r.LegalizeOps(
            customize_legalize_map=operators.legalizations(target, winograd), skip_ops=["relax.reshape"]
        ),
        r.FoldConstant(),
        r.DeadCodeElimination(["main"]),
        r.AnnotateTIROpPattern(),
        ErfApart(),
        *([GroupAttention()] if attention else []),
        r.FuseOps(fuse_opt_level=2),
        r.FuseTIR(),
        r.DeadCodeElimination(["main"]),
        r.CanonicalizeBindings(),
        r.ToNonDataflow(),
        r.RemovePurityChecking(),
        r.AttachGlobalSymbol(),
    ]


@mutator
class _LayoutFolder(PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: relax.Call) -> Any:
        call = self.visit_expr_post_order(call)
        name = call.op.name if isinstance(call.op, Op) else ""
        source = call.args[0] if name in _NUMPY else None
        if isinstance(source, relax.Var):
            source = self.lookup_binding(source)
        if isinstance(source, tvm.ir.GenericConst):
            values = array_of(source)
            changed = _NUMPY[name](values, call)
            copy = allocate(changed.shape, changed.dtype, in_file=is_in_file(values))
            copy[...] = changed
            let_go(values)
            let_go(copy)
            return constant(copy)
        return call


@mutator
class _Reshaper(PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: relax.Call) -> Any:
        call = self.visit_expr_post_order(call)
        if isinstance(call.op, Op) and call.op.name in _RESHAPES[1:]:
            return relax.op.reshape(call.args[0], call.ty.shape)
        return call


def _rewrite_main(rewriter: type[PyExprMutator], mod: tvm.IRModule) -> tvm.IRModule:
    rewriting = rewriter(mod)
    main = rewriting.visit_expr(mod["main"])
    gvar = mod.get_global_var("main")
    rewriting.builder_.update_func(gvar, main)
    return rewriting.builder_.get()


@tvm.transform.module_pass(opt_level=0, name="FoldLayout")
class FoldLayout:
    """Transpose and reshape constants with numpy."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite ``main``."""
        return _rewrite_main(_LayoutFolder, mod)


@tvm.transform.module_pass(opt_level=0, name="ErfApart")
class ErfApart:
    """Keep erf out of the kernels of products: its arithmetic needs so many registers that a tile's sums
    would go through memory. Element-wise operators around it are still fused with it."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Change the patterns of kernels."""
        changed = tvm.IRModule(dict(mod.functions.items()), attrs=mod.attrs)
        for gvar, function in mod.functions.items():
            if isinstance(function, tirx.PrimFunc) and gvar.name_hint.rstrip("0123456789") == "erf":
                changed.update_func(
                    changed.get_global_var(gvar.name_hint), function.with_attr("op_pattern", _INJECTIVE)
                )
        return changed


@tvm.transform.module_pass(opt_level=0, name="PlainReshapes")
class PlainReshapes:
    """Write squeeze, expand_dims and flatten as reshape, which the plan turns into an alias."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite ``main``."""
        return _rewrite_main(_Reshaper, mod)
