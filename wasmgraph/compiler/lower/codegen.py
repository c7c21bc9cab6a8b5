"""Stage 6: scheduled kernels become an object file of plain functions over raw pointers.

A kernel's C signature is ``int32_t kernel(T *input..., T *output..., T *workspace...)``; an input may also
be a number, an ``int32_t``. It returns 0. There is no packed calling convention, no runtime to call,
nothing to import. For a target with threads a kernel is several such functions (``phases.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from wasmgraph.compiler.lower.elementary import as_arithmetic, hold_arguments
from wasmgraph.compiler.lower.floats import define_floats
from wasmgraph.compiler.lower.phases import LOCAL_BYTES, Phase, divide
from wasmgraph.compiler.lower.prefetch import fetch_ahead
from wasmgraph.compiler.plan import symbol_of
from wasmgraph.compiler.sizes import buffer_bytes
from wasmgraph.compiler.tvm_private import llvm_builder
from wasmgraph.targets import Target


@dataclass(frozen=True)
class Kernels:
    """Compiled kernels; for each the bytes of the workspaces it takes after its outputs, and, for a target
    with threads, its phases."""

    library: tvm.runtime.Module
    workspaces: dict[str, tuple[int, ...]]
    phases: dict[str, tuple[Phase, ...]]


def tvm_target(target: Target) -> tvm.target.Target:
    """TVM's description of a target."""
    if target.kind == "wasm":
        config = {
            "kind": "llvm",
            "mtriple": "wasm32-unknown-unknown",
            "mattr": [f"+{feature}" for feature in target.features],
            "vector-width": 128,
            "cl-opt": _options(target),
        }
    else:
        config = {
            "kind": "llvm",
            "mcpu": target.cpu or tvm.target.codegen.llvm_get_system_cpu(),
            "mattr": list(target.features),
            "vector-width": 32 * target.lanes,
        }
        if target.exact_vectors:
            config["cl-opt"] = ["-vectorize-slp:bool=false"]  # it joins them to wider ones
    described = tvm.target.Target(config)
    return described.with_host(described)


def _options(target: Target) -> list[str]:
    """What LLVM is told about wasm, as its own command line's options."""
    # Otherwise loops end on i + 1 != n, which Cranelift turns into i != n - 1: the old i then
    # lives beside the new one, and every turn pays a copy and a second jump.
    options = ["-disable-lftr:bool=true"]
    if target.fma:
        # Its vectors of weights are loaded one by one (tiled.py), and loop strength reduction
        # adds up the address of each: without it they are offsets of one.
        options.append("-disable-lsr:bool=true")
    return options


def lowering_passes() -> tuple[list[tvm.ir.transform.Pass], list[tvm.ir.transform.Pass]]:
    """The CPU part of TVM's ``s_tir`` pipeline, short of the packed calling convention: what settles
    loops, and what comes after."""
    s, t = s_tir.transform, tirx.transform
    settling = [
        s.CanonicalizeLoop(),
        s.LowerInitBlock(),
        s.PlanAndUpdateBufferAllocationLocation(),
        s.ConvertBlocksToOpaque(),
        s.CompactBufferAllocation(),
        s.LowerMatchBuffer(),
        s.StmtSimplify(),
        s.LowerOpaqueBlock(),
        t.FlattenBuffer(),
        t.BF16ComputeLegalize(),
        t.prim_func_pass(lambda function, *_: fetch_ahead(function), opt_level=0, name="FetchAhead"),
        # Before NarrowDataType, which renames loops under the hints that name them.
        s.LoopPartition(),
        t.NarrowDataType(32),
    ]
    finishing = [
        # Before loops become vectors, which TVM does not make of functions that vectors lack.
        t.prim_func_pass(lambda function, *_: as_arithmetic(function), opt_level=0, name="Elementary"),
        t.VectorizeLoop(True),
        t.prim_func_pass(lambda function, *_: hold_arguments(function), opt_level=0, name="HoldArguments"),
        t.StorageRewrite(),
        s.HoistIfThenElse(),
        t.UnrollLoop(),
        s.RenormalizeSplitPattern(),
        t.StmtSimplify(),
        t.RemoveNoOp(),
        s.RewriteUnsafeSelect(),
        t.CommonSubexprElim(),
        t.FP8ComputeLegalize(),
        t.VerifyMemory(),
    ]
    return settling, finishing


def generate(mod: tvm.IRModule, target: Target) -> Kernels:
    """Lower and compile every PrimFunc of ``mod``."""
    described = tvm_target(target)
    kernels = {g: f for g, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)}
    config = {"s_tir.LoopPartition": {"partition_const_loop": True}}
    with described, tvm.transform.PassContext(opt_level=3, config=config):
        lowered = tirx.transform.BindTarget(described)(tvm.IRModule(kernels))
        settling, finishing = lowering_passes()
        lowered = tvm.ir.transform.Sequential(settling)(lowered)
        raw: dict[str, tirx.PrimFunc] = {}
        workspaces: dict[str, tuple[int, ...]] = {}
        phases: dict[str, tuple[Phase, ...]] = {}
        if target.threaded:
            divided = divide(lowered)
            lowered, phases, workspaces = divided.module, divided.phases, divided.workspaces
        lowered = tvm.ir.transform.Sequential(finishing)(lowered)
        for gvar, function in lowered.functions.items():
            name = gvar.name_hint
            function = function.with_attr("global_symbol", symbol_of(name))
            function, lifted = _raw_pointers(function, lift_large=not target.threaded)
            raw[symbol_of(name)] = define_floats(function, target)
            if not target.threaded:
                workspaces[name] = lifted
        finished = tirx.transform.LowerIntrin()(tvm.IRModule(raw))
        library = llvm_builder()(finished, described)
    return Kernels(library, workspaces, phases)


def _pointer(name: str, dtype: str) -> tirx.Var:
    return tirx.Var(name, tvm.ir.PointerType(tvm.ir.PrimType(dtype)))


def _raw_pointers(function: tirx.PrimFunc, lift_large: bool) -> tuple[tirx.PrimFunc, tuple[int, ...]]:
    """Turn buffer parameters, and if so asked large local arrays, into pointer parameters."""
    parameters: list[tirx.Var] = []
    declared: list[tirx.Stmt] = []

    def pointer_to(buffer: tirx.Buffer, name: str) -> tirx.Stmt:
        parameters.append(_pointer(name, str(buffer.dtype)))
        return tirx.DeclBuffer(buffer, data=parameters[-1])

    for parameter in function.params:
        if isinstance(parameter.ty, tvm.ir.PrimType):
            parameters.append(tirx.Var(parameter.name, "int32"))
            declared.append(tirx.Bind(parameter, tirx.Cast(parameter.ty.dtype, parameters[-1])))
        else:
            declared.append(pointer_to(parameter, f"{parameter.name}_pointer"))
    workspaces: list[int] = []

    def lift(allocation: tirx.AllocBuffer) -> tirx.Stmt:
        buffer = allocation.buffer
        if not lift_large or buffer_bytes(buffer) <= LOCAL_BYTES:
            return allocation
        workspaces.append(buffer_bytes(buffer))
        return pointer_to(buffer, f"{buffer.name}_workspace")

    body = tvm_ffi.structural_map(function.body, [(tirx.AllocBuffer, lift)])
    done = tirx.stmt.Return(tirx.const(0, "int32"))
    raw = tirx.PrimFunc(
        parameters,
        tirx.SeqStmt([*declared, body, done]),
        ret_type=tvm.ir.PrimType("int32"),
        attrs=function.attrs,
    )
    return raw, tuple(workspaces)
