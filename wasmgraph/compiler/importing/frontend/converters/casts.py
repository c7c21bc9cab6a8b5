"""Changes of dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper
from tvm import te, tirx

from wasmgraph.compiler.importing.frontend import half
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import DTYPES, Value, dtype_of


@converts("Cast")
def cast(op: Operator, data: Value) -> Any:
    """A cast to float16 rounds; what comes of it goes on as float32."""
    wanted = int(op.attr("to"))
    if wanted == TensorProto.FLOAT16:
        return op.walk.te(half.encode, data, name="to_half")
    if wanted == TensorProto.STRING or str(helper.tensor_dtype_to_np_dtype(wanted)) not in DTYPES:
        raise op.unsupported(f"to {TensorProto.DataType.Name(wanted).lower()}")
    return op.tvm(data, without=["saturate", "round_mode"])


@converts("CastLike")
def cast_like(op: Operator, data: Value, like: Value) -> Any:
    """A cast to the dtype of another tensor."""
    return op("Cast", data, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype_of(like))))


@converts("BitCast")
def bit_cast(op: Operator, data: Value) -> Any:
    """The same bits as another dtype of the same size."""
    wanted = str(helper.tensor_dtype_to_np_dtype(int(op.attr("to"))))
    if wanted not in DTYPES or "float16" in (wanted, dtype_of(data)):
        raise op.unsupported(f"from {dtype_of(data)} to {wanted}")
    if np.dtype(wanted).itemsize != np.dtype(dtype_of(data)).itemsize:
        raise op.unsupported(f"from {dtype_of(data)} to {wanted}, of another size")
    if "bool" in (wanted, dtype_of(data)):
        return op("Cast", data, to=helper.np_dtype_to_tensor_dtype(np.dtype(wanted)))

    def reinterpreted(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: tirx.reinterpret(wanted, x(*i)), name="bit_cast")

    return op.te(reinterpreted, data)
