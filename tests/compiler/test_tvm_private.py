"""What compiling relies on that TVM does not promise: a new TVM that lacks it fails here, by name."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout

import tvm
from tvm import s_tir, tirx
from tvm.relax.frontend.onnx import onnx_frontend

from wasmgraph.compiler import tvm_private
from wasmgraph.compiler.lower.codegen import lowering_passes
from wasmgraph.targets import get_target


def test_the_frontend_s_converters_are_found_by_operator() -> None:
    assert hasattr(onnx_frontend, "_get_convert_map"), "the walk converts single nodes by it"
    assert callable(tvm_private.frontend_converters()["Relu"].get_converter)
    assert callable(tvm_private.onnx_input), "the walk hands operands over in it"


def test_the_frontend_says_nothing_and_others_may() -> None:
    printed = io.StringIO()
    with redirect_stdout(printed), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        onnx_frontend.print("from the frontend")
        onnx_frontend.warnings.warn("from the frontend")
        print("from here")  # noqa: T201
    assert printed.getvalue() == "from here\n"
    assert not warned


def test_functions_are_built_without_the_packed_convention() -> None:
    assert callable(tvm_private.llvm_builder())


def test_loops_with_elementary_functions_can_be_vectorised() -> None:
    names = ("exp", "log", "log1p", "tanh", "erf", "sigmoid", "nearbyint")
    assert all(tvm.ir.Op.get(f"tirx.{name}").get_attr("TVectorizable") for name in names)


def test_the_lowering_s_passes_exist() -> None:
    settling, finishing = lowering_passes(get_target("wasm32-simd128"))
    assert len(settling) > 10
    assert all(isinstance(p, tvm.ir.transform.Pass) for p in (*settling, *finishing))
    assert hasattr(s_tir.transform, "LoopPartition"), "it peels the remainders of tiles"
    assert hasattr(tirx, "Bind"), "numbers among a kernel's operands are bound by it"
