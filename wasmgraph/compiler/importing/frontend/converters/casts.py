"""Changes of dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper
from tvm import relax, te, tirx

from wasmgraph.compiler.importing.frontend import half
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import DTYPES, Value, dtype_of, expression
from wasmgraph.tensors import Array


@converts("Cast")
def cast(op: Operator, data: Value) -> Any:
    """A cast to float16 rounds; its result is then represented as float32."""
    wanted = int(op.attr("to"))
    if isinstance(data, np.ndarray):  # floats to integers: other casts have been folded
        return whole_numbers(data, str(helper.tensor_dtype_to_np_dtype(wanted)))
    if wanted == TensorProto.FLOAT16:
        return op.walk.te(half.encode, data, name="to_half")
    if wanted == TensorProto.STRING or str(helper.tensor_dtype_to_np_dtype(wanted)) not in DTYPES:
        raise op.unsupported(f"to {TensorProto.DataType.Name(wanted).lower()}")
    wanted_dtype = str(helper.tensor_dtype_to_np_dtype(wanted))
    if dtype_of(data).startswith("float") and wanted_dtype.startswith(("int", "uint")):
        return relax.op.astype(expression(data), wanted_dtype)
    return op.tvm(data, without=["saturate", "round_mode"])


def whole_numbers(data: Array, dtype: str) -> Array:
    """Cast floats to integers as compiled code does (``lower/floats.py``): NaN becomes 0, other values
    saturate to 32 bits (64 for uint32, int64 and uint64), and narrower dtypes keep the lowest bits."""
    bits = 64 if dtype in ("uint32", "int64", "uint64") else 32
    limit = 2.0 ** (bits - 1)
    signed = f"int{bits}"
    with np.errstate(invalid="ignore"):
        whole = np.where(np.isnan(data), 0, np.trunc(data))
        found = np.where((whole >= -limit) & (whole < limit), whole, 0).astype(signed)
        found = np.where(whole >= limit, np.iinfo(signed).max, found)
        found = np.where(whole < -limit, np.iinfo(signed).min, found).astype(dtype)
        if dtype == "uint64":
            upper = np.where((whole >= limit) & (whole < 2 * limit), whole, 0).astype(dtype)
            found = np.where(whole >= limit, upper, found)
            found = np.where(whole >= 2 * limit, np.iinfo(dtype).max, found)
    return found.astype(dtype)


@converts("CastLike")
def cast_like(op: Operator, data: Value, like: Value) -> Any:
    """Cast to the dtype of another tensor."""
    return op("Cast", data, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype_of(like))))


@converts("BitCast")
def bit_cast(op: Operator, data: Value) -> Any:
    """Reinterpret the bits as another dtype of the same size."""
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
