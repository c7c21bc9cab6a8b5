"""Stage 6: scheduled kernels become an object file of plain functions over raw pointers.

A kernel's C signature is ``int32_t kernel(T *input..., T *output..., T *workspace...)``; it
returns 0. There is no packed calling convention, no runtime to call, nothing to import.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from wasmgraph.compiler.operators import tvm_dtype_bytes
from wasmgraph.targets import Target

# Local arrays larger than this become workspaces in the arena; a wasm stack is 64 KiB.
_STACK_LIMIT_BYTES = 1024


@dataclass(frozen=True)
class Kernels:
    """Compiled kernels, and for each the bytes of the workspaces it takes after its outputs."""

    library: tvm.runtime.Module
    workspaces: dict[str, tuple[int, ...]]


def tvm_target(target: Target) -> tvm.target.Target:
    """TVM's description of a target."""
    if target.kind == "wasm":
        config = {
            "kind": "llvm",
            "mtriple": "wasm32-unknown-unknown",
            "mattr": [f"+{feature}" for feature in target.features],
            "vector-width": 128,
            # Otherwise loops end on i + 1 != n, which Cranelift turns into i != n - 1: the old i then
            # lives beside the new one, and every turn pays a copy and a second jump.
            "cl-opt": ["-disable-lftr:bool=true"],
        }
    else:
        config = {
            "kind": "llvm",
            "mcpu": target.cpu or tvm.target.codegen.llvm_get_system_cpu(),
            "mattr": list(target.features),
            "vector-width": 32 * target.lanes,
        }
    described = tvm.target.Target(config)
    return described.with_host(described)


def lowering_passes() -> list[tvm.ir.transform.Pass]:
    """The CPU part of TVM's ``s_tir`` pipeline, short of the packed calling convention."""
    s, t = s_tir.transform, tirx.transform
    return [
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
        t.NarrowDataType(32),
        s.LoopPartition(),
        t.VectorizeLoop(True),
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


def generate(mod: tvm.IRModule, target: Target) -> Kernels:
    """Lower and compile every PrimFunc of ``mod``."""
    described = tvm_target(target)
    kernels = {g: f for g, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)}
    config = {"s_tir.LoopPartition": {"partition_const_loop": True}}
    with described, tvm.transform.PassContext(opt_level=3, config=config):
        lowered = tirx.transform.BindTarget(described)(tvm.IRModule(kernels))
        lowered = tvm.ir.transform.Sequential(lowering_passes())(lowered)
        raw, workspaces = {}, {}
        for gvar, function in lowered.functions.items():
            raw[gvar.name_hint], workspaces[gvar.name_hint] = _raw_pointers(function)
        finished = tirx.transform.LowerIntrin()(tvm.IRModule(raw))
        library = tvm.get_global_func("target.build.llvm")(finished, described)
    return Kernels(library, workspaces)


def _pointer(name: str, dtype: str) -> tirx.Var:
    return tirx.Var(name, tvm.ir.PointerType(tvm.ir.PrimType(dtype)))


def _raw_pointers(function: tirx.PrimFunc) -> tuple[tirx.PrimFunc, tuple[int, ...]]:
    """Turn buffer parameters and large local arrays into pointer parameters."""
    pointers = [_pointer(f"{p.name}_pointer", str(p.dtype)) for p in function.params]
    declared = [
        tirx.DeclBuffer(p, data=pointer) for p, pointer in zip(function.params, pointers, strict=True)
    ]
    workspaces: list[int] = []

    def lift(allocation: tirx.AllocBuffer) -> tirx.Stmt:
        buffer = allocation.buffer
        nbytes = prod(int(d) for d in buffer.shape) * tvm_dtype_bytes(str(buffer.dtype))
        if nbytes <= _STACK_LIMIT_BYTES:
            return allocation
        pointers.append(_pointer(f"{buffer.name}_workspace", str(buffer.dtype)))
        workspaces.append(nbytes)
        return tirx.DeclBuffer(buffer, data=pointers[-1])

    body = tvm_ffi.structural_map(function.body, [(tirx.AllocBuffer, lift)])
    done = tirx.stmt.Return(tirx.const(0, "int32"))
    raw = tirx.PrimFunc(
        pointers,
        tirx.SeqStmt([*declared, body, done]),
        ret_type=tvm.ir.PrimType("int32"),
        attrs=function.attrs,
    )
    return raw, tuple(workspaces)
