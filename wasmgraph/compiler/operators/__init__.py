"""Implementations of the Relax operators that matter for speed: tensor expressions over packed weights."""

from __future__ import annotations

from wasmgraph.compiler.operators.convolution import legalize_convolution
from wasmgraph.compiler.operators.dense import legalize_dense
from wasmgraph.compiler.operators.packing import Legalize
from wasmgraph.compiler.operators.softmax import legalize_softmax
from wasmgraph.targets import Target


def legalizations(target: Target, winograd: bool) -> dict[str, Legalize]:
    """The legalisations of this package for a target. Variants that they do not support are left to TVM."""
    return {
        "relax.nn.conv2d": lambda bb, call: legalize_convolution(bb, call, target, winograd),
        "relax.matmul": lambda bb, call: legalize_dense(bb, call, target),
        "relax.nn.softmax": legalize_softmax,
    }
