"""Groups attention: the product of queries and keys, element-wise operators, a softmax along the last axis
and the product with the values become one kernel (``schedule/attention.py``).
"""

from __future__ import annotations

from collections import Counter

import tvm
from tvm import relax
from tvm.ir import Op

from wasmgraph.compiler.operators.dense import PRODUCT
from wasmgraph.compiler.operators.softmax import SOFTMAX
from wasmgraph.compiler.sizes import is_tensor, shape_of

_BROADCAST = 1  # Relax's patterns of operators up to this one are element-wise, with broadcasting
_CALL_TIR = Op.get("relax.call_tir")


@tvm.transform.module_pass(opt_level=0, name="GroupAttention")
class GroupAttention:
    """Move the calls of each attention from ``main`` into a function, of which FuseTIR makes a kernel.

    Element-wise calls between the product and the softmax may have operands that broadcast to the scores:
    scales, masks, biases.
    """

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite ``main``."""
        main, builder = mod["main"], relax.BlockBuilder(mod)
        blocks = [
            _Grouping(builder, block).block() if isinstance(block, relax.DataflowBlock) else block
            for block in main.body.blocks
        ]
        body = relax.SeqExpr(blocks, main.body.body)
        changed = relax.Function(main.params, body, main.ret_ty, True, main.attrs)
        builder.update_func(mod.get_global_var("main"), changed)
        return builder.get()


class _Grouping:
    """The attentions of a block; ``builder`` gets their functions."""

    def __init__(self, builder: relax.BlockBuilder, block: relax.DataflowBlock) -> None:
        self._builder, self._bindings = builder, list(block.bindings)
        self._mod = builder.get()
        self._values = {binding.var: binding.value for binding in self._bindings}
        self._uses: Counter[relax.Var] = Counter()
        for binding in self._bindings:
            relax.analysis.post_order_visit(binding.value, self._count)

    def _count(self, expression: relax.Expr) -> None:
        if isinstance(expression, relax.Var):
            self._uses[expression] += 1

    def block(self) -> relax.DataflowBlock:
        """The block with a call in the place of each attention."""
        replaced: dict[relax.Var, relax.Expr] = {}
        inside: set[relax.Var] = set()
        for binding in self._bindings:
            group = self._attention(binding.var)
            if group is not None:
                replaced[binding.var] = self._function(group)
                inside.update(group[:-1])
        return relax.DataflowBlock(
            [
                relax.VarBinding(b.var, replaced[b.var]) if b.var in replaced else b
                for b in self._bindings
                if b.var not in inside
            ]
        )

    def _attention(self, last: relax.Var) -> list[relax.Var] | None:
        """The variables of the attention whose result is ``last``, in order; None if it is not one."""
        if not self._is(last, PRODUCT):
            return None
        shares, _ = self._operands(last)
        if not self._is(shares, SOFTMAX) or self._uses[shares] != 1:
            return None
        scores = self._scores(*self._operands(shares))
        return None if scores is None else [*scores, shares, last]

    def _scores(self, variable: relax.Expr) -> list[relax.Var] | None:
        """The variables from a product to ``variable``, which nothing else uses; None if there is none."""
        kernel = self._kernel(variable)
        if kernel is None or self._uses[variable] != 1:
            return None
        if self._is(variable, PRODUCT):
            return [variable]
        if int(kernel.attrs.get("op_pattern", _BROADCAST + 1)) > _BROADCAST:
            return None
        shape = shape_of(variable)
        for operand in self._operands(variable):
            if isinstance(operand, relax.Var) and shape_of(operand) == shape:
                found = self._scores(operand)
                if found is not None:
                    return [*found, variable]
        return None

    def _operands(self, variable: relax.Var) -> list[relax.Expr]:
        return list(self._values[variable].args[1].fields)

    def _kernel(self, variable: relax.Expr) -> tvm.tirx.PrimFunc | None:
        value = self._values.get(variable) if isinstance(variable, relax.Var) else None
        if not isinstance(value, relax.Call) or value.op != _CALL_TIR:
            return None
        kernel = self._mod[value.args[0]]
        # A kernel that takes a dimension as a number stays alone: of rows as many as 3 * n, for example.
        return kernel if all(map(is_tensor, kernel.params)) else None

    def _is(self, variable: relax.Expr, kind: str) -> bool:
        kernel = self._kernel(variable)
        return kernel is not None and kernel.attrs is not None and bool(kernel.attrs.get(kind, 0))

    def _function(self, group: list[relax.Var]) -> relax.Call:
        """A function of the group's calls, and a call of it."""
        parameters: dict[relax.Expr, relax.Var] = {}
        made: dict[relax.Expr, relax.Var] = {}
        bindings = []

        def own(operand: relax.Expr) -> relax.Expr:
            if operand in made:
                return made[operand]
            return parameters.setdefault(operand, relax.Var(f"p{len(parameters)}", operand.ty))

        for variable in group:
            operands = [own(operand) for operand in self._operands(variable)]
            inner = relax.DataflowVar if variable is not group[-1] else relax.Var
            made[variable] = inner(f"v{len(made)}", variable.ty)
            call = relax.call_tir(self._values[variable].args[0], operands, variable.ty)
            bindings.append(relax.VarBinding(made[variable], call))
        result = made[group[-1]]
        function = relax.Function(
            list(parameters.values()),
            relax.SeqExpr([relax.DataflowBlock(bindings)], result),
            result.ty,
            True,
            tvm.ir.DictAttrs({"Primitive": 1}),
        )
        return relax.Call(self._builder.add_func(function, "fused_attention"), list(parameters))
