"""float16 to float32 and back, in integer arithmetic. LLVM would call functions of the C library, one
element at a time, and for wasm some of those are incompatible with their callers.

Both conversions are exact except for rounding to nearest even. They use the well-known exponent tricks
(Fabian Giesen, "Half to float done quick", 2012).
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx


def _bits(value: Any, dtype: str) -> Any:
    return tirx.reinterpret(dtype, value)


def _u32(value: int) -> Any:
    return tirx.const(value, "uint32")


def decode(data: te.Tensor) -> te.Tensor:
    """float16 → float32."""

    def one(*index: Any) -> Any:
        bits = _bits(data(*index), "uint16").astype("uint32")
        magnitude, sign = bits & _u32(0x7FFF), (bits & _u32(0x8000)) << _u32(16)
        # Multiplying by 2**112 changes the exponent's bias, for subnormal numbers too.
        scaled = _bits(magnitude << _u32(13), "float32") * _bits(_u32(239 << 23), "float32")
        special = tirx.Select(magnitude >= _u32(0x7C00), _u32(0x7F800000), _u32(0))
        return _bits(_bits(scaled, "uint32") | special | sign, "float32")

    return te.compute(data.shape, one, name="from_half")


def _encoded(value: Any) -> Any:
    bits = _bits(value.astype("float32"), "uint32")
    sign, magnitude = bits & _u32(0x80000000), bits & _u32(0x7FFFFFFF)
    special = tirx.Select(magnitude > _u32(255 << 23), _u32(0x7E00), _u32(0x7C00))
    # Adding 0.5 lets the processor round a number that float16 stores as a subnormal one.
    magic = _u32(126 << 23)
    small = _bits(_bits(magnitude, "float32") + _bits(magic, "float32"), "uint32") - magic
    odd = (magnitude >> _u32(13)) & _u32(1)
    normal = (magnitude + _u32(0xC8000FFF) + odd) >> _u32(13)  # -112 << 23, and just below a half
    finite = tirx.Select(magnitude < _u32(113 << 23), small, normal)
    half = tirx.Select(magnitude >= _u32(143 << 23), special, finite)
    return half | (sign >> _u32(16))


def encode(data: te.Tensor) -> te.Tensor:
    """Floats → float16, rounded to the nearest, ties to even."""

    def one(*index: Any) -> Any:
        return _bits(_encoded(data(*index)).astype("uint16"), "float16")

    return te.compute(data.shape, one, name="to_half")
