"""How Relax operators that matter for speed are computed: tensor expressions over packed weights."""

from __future__ import annotations

from wasmgraph.compiler.operators.convolution import legalize_convolution
from wasmgraph.compiler.operators.dense import legalize_dense
from wasmgraph.compiler.operators.packing import Legalize
from wasmgraph.targets import Target


def legalizations(target: Target, winograd: bool) -> dict[str, Legalize]:
    """The operators computed here, for a target; variants that they decline are left to TVM."""
    return {
        "relax.nn.conv2d": lambda bb, call: legalize_convolution(bb, call, target, winograd),
        "relax.matmul": lambda bb, call: legalize_dense(bb, call, target),
    }
