"""Compiling: an ONNX model goes in, an artifact file comes out. The stages are in ARCHITECTURE.md."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasmgraph.artifact import (
    CLOSED_SCHEMA,
    SCHEMA,
    Artifact,
    Check,
    Manifest,
    Params,
    Placed,
    PlacedDim,
    Step,
    seal,
)
from wasmgraph.compiler.form import Form
from wasmgraph.compiler.interrupts import keeping_interrupts
from wasmgraph.dims import Size, bounded, replaced
from wasmgraph.errors import CacheError, CompileError, UsageError, WasmgraphError, needing
from wasmgraph.files import expand, replacing, write_atomically
from wasmgraph.host import cpu_features
from wasmgraph.limits import COMPILE_LIMITS, Limits
from wasmgraph.targets import Target, get_target
from wasmgraph.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx
    import tvm

    from wasmgraph.compiler.importing import ImportedModel
    from wasmgraph.compiler.importing.binding import Bounds, Shapes
    from wasmgraph.compiler.lower.codegen import Kernels
    from wasmgraph.compiler.plan import Plan

# Processor features that native code may need: what LLVM's vector code depends on.
_NATIVE_FEATURES = ("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "asimd")
# One parameter file serves every wasm target: weights lie in it as this one reads them, and convolutions
# get the algorithms that are best for it.
_SHARED_PACKING = "wasm32-simd128"


# TVM's builders of modules are the process's: compiles in several threads take turns.
_TVM = threading.RLock()


@dataclass
class Stage:
    """One finished stage of a compile: its name, seconds, and what came of it in words."""

    name: str
    seconds: float = 0.0
    outcome: str = ""


@dataclass
class CompileLog:
    """The stages of one compile, which rule scheduled how many of the plan's calls, the kernels that no
    rule scheduled (``fallbacks``), the products under a rule that is not made for them (``slow``), which
    outputs were known without running anything, and what the user should know (``notes``)."""

    stages: list[Stage] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)
    fallbacks: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    constant_outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    observer: Callable[[Stage], None] | None = None

    @property
    def seconds(self) -> float:
        """Of all stages together."""
        return sum(stage.seconds for stage in self.stages)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a stage; the block fills in its outcome. The observer sees it at both ends."""
        stage = Stage(name)
        if self.observer:
            self.observer(stage)
        began = time.perf_counter()
        yield stage
        stage.seconds = time.perf_counter() - began
        self.stages.append(stage)
        if self.observer:
            self.observer(stage)


def compile(
    model: str | Path | bytes | onnx.ModelProto,
    *,
    target: str = "wasm32-simd128",
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    dims: Mapping[str, int | tuple[int, int]] | None = None,
    params: Params = "embedded",
    keep: str | Path | None = None,
    winograd: bool = True,
    log: CompileLog | None = None,
    command: bool = False,
    untrusted: bool = False,
    limits: Limits | None = None,
) -> Artifact:
    """Compile an ONNX model, weights and all, into one file.

    Parameters
    ----------
    model : path of an ONNX file (``.onnx``, or one of ONNX's text formats), its bytes, or a model in memory
    target : a name of :func:`wasmgraph.targets.target_names`
    shapes : by input name, its shape, of numbers and of names of dimensions (also ``"past + seq"``); needed
        where the model's own has neither a number nor a name
    dims : by name of a dimension, the least and the most that it may be when the graph runs, or its one
        value; names come from the model or from ``shapes``
    params : where the weights go: ``embedded`` puts them into the module, ``wasi`` into a file that the
        module reads through WASI, one for all wasm targets, in ``wasmgraph-params`` beside the module
    keep : a directory to leave ``graph.json``, ``graph.o``, ``graph.params`` and the archive in, and
        the kernels as text: ``graph.ll``; of wasm also ``graph.wat`` and, as Cranelift compiles it, the
        ELF file ``machine-code.elf``
    winograd : False keeps every convolution direct, for the last bit of accuracy
    log : filled with stages, times and rule counts
    command : link a WASI command: raw inputs on its standard input, raw outputs on its standard output
    untrusted : import and compile in a child process, with ``limits`` that it is killed for exceeding;
        SECURITY.md says what that promises. On Linux
    limits : of an untrusted model; by default 8 GiB, 600 s of processor time, 600 s

    Returns
    -------
    Artifact
        In a temporary place until :meth:`~wasmgraph.Artifact.save` is called.

    Raises
    ------
    ModelError, TargetError, UsageError
        The model, the target or an option is not acceptable.
    CompileError
        TVM, the assembler or the linker failed.
    LimitError
        An untrusted model exceeded a limit.
    """
    chosen = get_target(target)
    _check_form(chosen, params, command)
    log = log or CompileLog()
    if untrusted:
        from wasmgraph.compiler.untrusted.parent import compile_untrusted

        options: dict[str, Any] = {"target": target, "shapes": shapes, "dims": dims, "params": params}
        options |= {"keep": keep, "winograd": winograd, "command": command}
        return compile_untrusted(model, options, limits or COMPILE_LIMITS, log)
    if limits is not None:
        raise UsageError("limits are kept for untrusted models only: compile with untrusted=True.")
    with needing("compiling", "compile"):
        from wasmgraph.compiler.importing import import_model  # noqa: F401 - or say what is missing
    with keeping_interrupts(), _TVM:
        return _compile(model, chosen, (shapes, dims), Form(params, command), keep, winograd, log)


def _compile(
    model: str | Path | bytes | onnx.ModelProto,
    target: Target,
    bounds: tuple[Shapes | None, Bounds | None],
    form: Form,
    keep: str | Path | None,
    winograd: bool,
    log: CompileLog,
) -> Artifact:
    from wasmgraph.compiler.importing import import_model

    most_bytes = 1 << 32 if target.kind == "wasm" else None
    with log.stage("import") as stage, _failing(f"importing the model for {target.name}"):
        module, imported = import_model(model, bounds[0], most_bytes, bounds[1])
        log.constant_outputs, log.notes = imported.constant_outputs, imported.notes
        if form.command and imported.dims:
            raise UsageError(
                f"{imported.name}: a WASI command reads tensors of fixed sizes; bind"
                f" {', '.join(dim.name for dim in imported.dims)} to one value each."
            )
        stage.outcome = ", ".join(map(str, imported.inputs))
    where = f"{imported.name} for {target.name}"
    with _failing(where):
        owner: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="wasmgraph-")
    try:
        modules = [module]
        del module
        with _failing(where), bounded({dim.name: dim for dim in imported.dims}):
            linked, kernels = _build(modules, imported, target, winograd, form, Path(owner.name), log)
        if keep is not None:
            try:
                _keep(linked.parent, expand(keep), target, kernels)
            except OSError as error:
                raise UsageError(f"--keep {keep} cannot be written: {error.strerror}.") from error
        return Artifact.open(linked, owner)
    except BaseException:
        owner.cleanup()
        raise


@contextmanager
def _failing(where: str) -> Iterator[None]:
    """Say of what fails for another reason than the model: a CompileError."""
    try:
        yield
    except WasmgraphError:
        raise
    except OSError as error:
        raise CacheError(
            f"{where}: {error.filename or tempfile.tempdir or 'a temporary file'} cannot be written"
            f" ({error.strerror or error}): make room there, or set TMPDIR to another directory."
        ) from error
    except Exception as error:
        last = (str(error).strip() or repr(error)).splitlines()[-1]
        raise CompileError(f"{where}: {type(error).__name__}: {last}") from error


def build_roofline(target: str) -> Artifact:
    """The roofline of a target as an artifact; see ``compiler/inspect/roofline.py``."""
    with needing("the roofline is compiled for the target, which", "compile"):
        import ziglang  # noqa: F401

    from wasmgraph.compiler.inspect import roofline

    return roofline.build_roofline(target)


def _check_form(target: Target, params: str, command: bool) -> None:
    if params not in ("embedded", "wasi"):
        raise UsageError(f"params={params!r} is not supported; params must be 'embedded' or 'wasi'.")
    if target.kind != "wasm" and (command or params == "wasi"):
        raise UsageError(f"{target.name} is native code; WASI is for wasm targets.")
    if target.threaded and command:
        raise UsageError(f"{target.name}: a WASI command has one thread; compile it for wasm32-simd128.")


def _build(
    modules: list[tvm.IRModule],
    imported: ImportedModel,
    target: Target,
    winograd: bool,
    form: Form,
    directory: Path,
    log: CompileLog,
) -> tuple[Path, Kernels]:
    """Stages 3 to 7. The module is taken out of ``modules``, so that weights which a pass has rewritten
    are freed at once."""
    from tvm.tirx import PrimFunc

    from wasmgraph.compiler.constants import let_all_go
    from wasmgraph.compiler.inspect.work import is_product, kernel_flops
    from wasmgraph.compiler.link.graph import link_graph
    from wasmgraph.compiler.lower import codegen
    from wasmgraph.compiler.plan import COPY, SET, make_plan
    from wasmgraph.compiler.relax import passes
    from wasmgraph.compiler.schedule import FALLBACK, PRODUCT_RULES, schedule_module

    with log.stage("transform") as stage:
        mod = modules.pop()
        packing = target if form.params == "embedded" else get_target(_SHARED_PACKING)
        with codegen.tvm_target(target):
            # Threads would share the arrays in which a chunk of scores is held.
            for transform in passes.relax_passes(packing, winograd, attention=not target.threaded):
                mod = transform(mod)
                let_all_go()
        stage.outcome = f"{len(mod.functions) - 1} kernels"
    with log.stage("schedule") as stage:
        unscheduled = {g.name_hint: f for g, f in mod.functions.items() if isinstance(f, PrimFunc)}
        flops: dict[str, Size] = {name: kernel_flops(f) for name, f in unscheduled.items()}
        products = {name for name, f in unscheduled.items() if is_product(f)}
        mod, chosen = schedule_module(mod, target)
        rules = {kernel: choice.rule for kernel, choice in chosen.items()}
        stage.outcome = f"{len(rules)} kernels by {len(set(rules.values()))} rules"
    with log.stage("codegen") as stage:
        kernels = codegen.generate(mod, target)
        kernels.library.write_to_file(str(directory / "graph.o"), "o")
        stage.outcome = f"{(directory / 'graph.o').stat().st_size:,} bytes"
    with log.stage("plan") as stage:
        limits = [check.limit for check in imported.checks]
        room = 1 << 32 if target.kind == "wasm" else None
        plan, constants = make_plan(mod, kernels, limits, imported.dims, room, imported.counts)
        stage.outcome = f"{len(plan.calls)} calls, arena {plan.arena_bytes:,} bytes"
    (directory / "graph.json").write_text(plan.to_json())
    rules |= {COPY: "copy", SET: "copy"}
    flops |= {COPY: 0, SET: 0}
    steps = tuple(
        Step(
            c.kernel,
            _operators(c.kernel),
            rules[c.kernel],
            replaced(flops[c.kernel], c.values),
            c.traffic_bytes,
            c.kernel in products,
            plan.turns(number),
        )
        for number, c in enumerate(plan.calls)
    )
    log.rules.update(step.rule for step in steps)
    log.fallbacks += [step.kernel for step in steps if step.rule == FALLBACK]
    slow = [step.kernel for step in steps if step.product and step.rule not in PRODUCT_RULES]
    log.slow += slow
    with log.stage("link") as stage:
        sides = imported.inputs, imported.outputs
        linked, digest = link_graph(directory, target, plan, constants, kernels.phases, form, *sides)
        manifest = _manifest(imported, target, plan, steps, linked)
        manifest = replace(
            manifest,
            params=form.params,
            params_sha256=digest,
            command=form.command,
            ops_slow=len(slow),
        )
        seal(linked, manifest)
        size = linked.stat().st_size
        stage.outcome = f"{size:,} bytes, {size - manifest.embedded_bytes:,} without parameters"
    return linked, kernels


def _operators(kernel: str) -> str:
    """``fused_conv2d3_add1_relu`` → ``conv2d+add+relu``."""
    words = kernel.removeprefix("fused_").split("_")
    names = [w.rstrip("0123456789") if not w.endswith("2d") else w for w in words]
    cleaned = [n if not n.startswith("conv2d") else "conv2d" for n in names if n]
    return "+".join(cleaned)


def _manifest(
    imported: ImportedModel, target: Target, plan: Plan, steps: tuple[Step, ...], linked: Path
) -> Manifest:
    from wasmgraph.abi import ARENA
    from wasmgraph.compiler.schedule import FALLBACK
    from wasmgraph.wasm.wasmfile import read_module

    base = 0
    if target.kind == "wasm":
        with linked.open("rb") as stream:
            base = read_module(stream).global_values[ARENA]

    def placed(specs: Sequence[TensorSpec], offsets: Sequence[int]) -> tuple[Placed, ...]:
        pairs = zip(specs, offsets, strict=True)
        return tuple(Placed(s.name, s.shape, s.dtype, base + offset) for s, offset in pairs)

    checks = tuple(
        Check(c.node, c.operator, c.low, c.high, base + placed.offset)
        for c, placed in zip(imported.checks, plan.checks, strict=True)
    )
    native = target.kind == "native"
    fallback = sum(step.rule == FALLBACK for step in steps)
    return Manifest(
        schema=SCHEMA if plan.dims else CLOSED_SCHEMA,
        model_name=imported.name,
        model_sha256=imported.sha256,
        weights=str(imported.description.get("weights", "unknown")),
        description=imported.description,
        target=target.name,
        kind=target.kind,
        features=target.features,
        cpu_features=tuple(f for f in _NATIVE_FEATURES if f in cpu_features()) if native else (),
        inputs=placed(imported.inputs, plan.inputs),
        outputs=placed(imported.outputs, plan.outputs),
        arena_bytes=plan.arena_bytes,
        param_bytes=plan.param_bytes,
        params="embedded",
        steps=steps,
        checks=checks,
        kernels=len({step.kernel for step in steps}),
        ops_scheduled=len(steps) - fallback,
        ops_fallback=fallback,
        dims=tuple(
            PlacedDim(d.name, d.least, d.most, base + plan.dims_at + 4 * n, d.name in plan.computed)
            for n, d in enumerate(plan.dims)
        ),
        notes=imported.notes,
        versions={p: version(p) for p in ("wasmgraph", "apache-tvm", "ziglang", "onnx")},
    )


def _keep(directory: Path, keep: Path, target: Target, kernels: Kernels) -> None:
    from wasmgraph.compiler.inspect import listing
    from wasmgraph.compiler.link.graph import archive_name

    keep.mkdir(parents=True, exist_ok=True)
    for name in ("graph.json", "graph.o", "graph.params", archive_name(target)):
        with (directory / name).open("rb") as source, replacing(keep / name) as stream:
            shutil.copyfileobj(source, stream, 1 << 22)
    texts = {"graph.ll": kernels.library.inspect_source("ll").encode()}
    if target.kind == "wasm":
        wat = listing.wat(kernels.library.inspect_source("s"))
        texts |= {"graph.wat": wat.encode(), "machine-code.elf": listing.machine_code(wat)}
    for name, content in texts.items():
        write_atomically(keep / name, content)


__all__ = ["CompileLog", "Stage", "build_roofline", "compile"]
