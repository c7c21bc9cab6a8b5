"""Stage 6: compiles scheduled kernels to an object file of plain functions over raw pointers.

A kernel's C signature is ``int32_t kernel(int32_t dim..., T *input..., T *output..., T *workspace...)``; an
input may also be a scalar, an ``int32_t``. A kernel returns 0. It uses no packed calling convention, calls
no runtime and imports nothing. For a target with threads a kernel is several such functions
(``phases.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from wasmgraph.compiler.lower.compact import compact
from wasmgraph.compiler.lower.elementary import as_arithmetic, many_as_arithmetic
from wasmgraph.compiler.lower.floats import define_floats
from wasmgraph.compiler.lower.pairs import multiply_pairs
from wasmgraph.compiler.lower.phases import LOCAL_BYTES, Phase, divide
from wasmgraph.compiler.lower.prefetch import fetch_ahead
from wasmgraph.compiler.plan import symbol_of
from wasmgraph.compiler.sizes import buffer_bytes, definitions, is_tensor
from wasmgraph.compiler.tvm_private import llvm_builder
from wasmgraph.dims import Size
from wasmgraph.targets import Target


@dataclass(frozen=True)
class Kernels:
    """Compiled kernels; for each kernel the dimensions whose values it takes first, the sizes in bytes of
    the workspaces that follow its outputs and, for a target with threads, its phases."""

    library: tvm.runtime.Module
    dims: dict[str, tuple[str, ...]]
    workspaces: dict[str, tuple[Size, ...]]
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
            config["cl-opt"] = ["-vectorize-slp:bool=false"]  # SLP would join vectors into wider ones
    described = tvm.target.Target(config)
    return described.with_host(described)


def _options(target: Target) -> list[str]:
    """LLVM's command-line options for wasm."""
    # Otherwise a loop's exit test is i + 1 != n, which Cranelift turns into i != n - 1. The old i is then
    # live together with the new one, and every iteration costs a copy and a second jump.
    options = ["-disable-lftr:bool=true"]
    if target.fma:
        # Kernels for FMA load vectors of weights one by one (tiled.py). Loop strength reduction would
        # increment an address for each of them; without it they are constant offsets from one address.
        options.append("-disable-lsr:bool=true")
    return options


def lowering_passes(
    target: Target,
) -> tuple[list[tvm.ir.transform.Pass], list[tvm.ir.transform.Pass]]:
    """The CPU passes of TVM's ``s_tir`` pipeline without the packed calling convention, in two parts: the
    passes that determine the loops, and those that follow."""
    s, t = s_tir.transform, tirx.transform
    settling = [
        s.CanonicalizeLoop(),
        s.LowerInitBlock(),
        s.PlanAndUpdateBufferAllocationLocation(),
        s.ConvertBlocksToOpaque(),
        t.prim_func_pass(lambda function, *_: compact(function), opt_level=0, name="Compact"),
        s.LowerMatchBuffer(),
        s.StmtSimplify(),
        s.LowerOpaqueBlock(),
        t.FlattenBuffer(),
        t.BF16ComputeLegalize(),
        t.prim_func_pass(lambda function, *_: fetch_ahead(function), opt_level=0, name="FetchAhead"),
        # Before NarrowDataType, which renames loops but not the hints that refer to them by name.
        s.LoopPartition(),
        t.NarrowDataType(32),
    ]
    finishing = [
        # Before VectorizeLoop, which cannot vectorise calls of functions that have no vector form.
        t.prim_func_pass(lambda function, *_: as_arithmetic(function), opt_level=0, name="Elementary"),
        t.VectorizeLoop(True),
        t.prim_func_pass(lambda f, *_: multiply_pairs(f, target), opt_level=0, name="MultiplyPairs"),
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
    kernels: dict[tvm.ir.GlobalVar, tirx.PrimFunc] = {}
    dims: dict[str, tuple[str, ...]] = {}
    for gvar, function in mod.functions.items():
        if isinstance(function, tirx.PrimFunc):
            kernels[gvar], dims[gvar.name_hint] = _with_dims(function)
    config = {"s_tir.LoopPartition": {"partition_const_loop": True}}
    with described, tvm.transform.PassContext(opt_level=3, config=config):
        lowered = tirx.transform.BindTarget(described)(tvm.IRModule(kernels))
        settling, finishing = lowering_passes(target)
        lowered = tvm.ir.transform.Sequential(settling)(lowered)
        raw: dict[str, tirx.PrimFunc] = {}
        workspaces: dict[str, tuple[Size, ...]] = {}
        phases: dict[str, tuple[Phase, ...]] = {}
        if target.threaded:
            divided = divide(lowered)
            lowered, phases, workspaces = divided.module, divided.phases, divided.workspaces
        lowered = tvm.ir.transform.Sequential(finishing)(lowered)
        for gvar, function in lowered.functions.items():
            name = gvar.name_hint
            function = function.with_attr("global_symbol", symbol_of(name))
            function = many_as_arithmetic(function)
            function, lifted = _raw_pointers(function, lift_large=not target.threaded)
            raw[symbol_of(name)] = define_floats(function, target)
            if not target.threaded:
                workspaces[name] = lifted
        finished = tirx.transform.LowerIntrin()(tvm.IRModule(raw))
        library = llvm_builder()(finished, described)
    return Kernels(library, dims, workspaces, phases)


def _with_dims(function: tirx.PrimFunc) -> tuple[tirx.PrimFunc, tuple[str, ...]]:
    """A kernel with the variables of its tensors' shapes as its first parameters, and their names."""
    given = [p for p in function.params if not is_tensor(p)]
    found: dict[str, tirx.Var] = {}
    for buffer in function.params:
        for size in buffer.shape if is_tensor(buffer) else ():
            for variable in tirx.analysis.undefined_vars(size):
                if not any(variable.same_as(p) for p in given):
                    found.setdefault(variable.name, variable)
    if not found:
        return function, ()
    names = tuple(sorted(found))
    parameters = [*(found[name] for name in names), *function.params]
    return tirx.PrimFunc(parameters, function.body, function.ret_type, attrs=function.attrs), names


def _pointer(name: str, dtype: str) -> tirx.Var:
    return tirx.Var(name, tvm.ir.PointerType(tvm.ir.PrimType(dtype)))


def _raw_pointers(function: tirx.PrimFunc, lift_large: bool) -> tuple[tirx.PrimFunc, tuple[Size, ...]]:
    """Turn buffer parameters into pointer parameters; with ``lift_large``, large local arrays too."""
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
    workspaces: list[Size] = []
    defined = definitions(function.body)

    def lift(allocation: tirx.AllocBuffer) -> tirx.Stmt:
        buffer = allocation.buffer
        size = buffer_bytes(buffer, defined)
        if not lift_large or (isinstance(size, int) and size <= LOCAL_BYTES):
            return allocation
        workspaces.append(size)
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
