"""What is used of TVM that it does not promise to keep: tests/compiler/test_tvm_private.py names it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Op
from tvm.relax.frontend.onnx import onnx_frontend

# The frontend prints and warns about what an error says better. It finds both names in its own module, so
# that nothing of the process changes: other threads may print and warn meanwhile.
onnx_frontend.print = lambda *_, **__: None
onnx_frontend.warnings = SimpleNamespace(warn=lambda *_, **__: None)

# TVM would not vectorise a loop with one of these; lower/elementary.py makes vectors of erf and log1p, and
# rounding is an instruction.
for name in ("erf", "log1p", "nearbyint"):
    Op.get(f"tirx.{name}").set_attr("TVectorizable", True)

onnx_input = onnx_frontend.onnx_input


def frontend_converters() -> dict[str, Any]:
    """By ONNX operator, TVM's converter."""
    converters: dict[str, Any] = onnx_frontend._get_convert_map()
    return converters


def llvm_builder() -> Callable[[tvm.IRModule, tvm.target.Target], tvm.runtime.Module]:
    """What compiles lowered functions, without TVM's own finishing passes."""
    build: Callable[[tvm.IRModule, tvm.target.Target], tvm.runtime.Module]
    build = tvm.get_global_func("target.build.llvm")
    return build


def end_blocks(builder: relax.BlockBuilder) -> None:
    """End the block that an exception left unfinished: a builder that is released with one prints a warning
    to the standard error."""
    with suppress(Exception):  # there is none
        builder._end_block()
