"""Commands that make and run graphs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wasmgraph.cli.terminal import console, echo, json_option, note, progress, say
from wasmgraph.errors import InputError, UsageError
from wasmgraph.limits import COMPILE_LIMITS, Limits
from wasmgraph.targets import target_names

if TYPE_CHECKING:
    from wasmgraph.artifact import Artifact
    from wasmgraph.compiler import CompileLog
    from wasmgraph.tensors import Array

# Seconds that stages of a compile take on ResNet-50, so that a bar can tell how much is left.
_STAGES = {"import": 1.5, "transform": 6.0, "schedule": 0.6, "codegen": 2.8, "plan": 0.4, "link": 2.5}
target_option = click.option(
    "--target", default="wasm32-simd128", show_default=True, help=", ".join(target_names())
)
shape_option = click.option(
    "--shape",
    multiple=True,
    metavar="NAME=1,3,224,224",
    help="Bind an input's shape, to numbers or names of dimensions; repeatable.",
)
dim_option = click.option(
    "--dim",
    multiple=True,
    metavar="NAME=1..512",
    help="Leave a dimension open between bounds, or bind it to one value; repeatable.",
)
value_option = click.option(
    "--dim",
    multiple=True,
    metavar="NAME=8",
    help="An open dimension's value, if no input says it; repeatable.",
)
params_option = click.option(
    "--params-dir",
    type=click.Path(path_type=Path),
    help="Folder of the parameter file [wasmgraph-params beside the artifact].",
)
strict_option = click.option(
    "--strict/--no-strict",
    default=True,
    show_default=True,
    help="Refuse arrays of another dtype, or cast them, as long as no value overflows.",
)
threads_option = click.option(
    "--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads of one inference."
)


def trust_options(default: Limits, what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options that say whether ``what`` is trusted: the arguments ``trust`` of ``load`` or ``compile``."""
    memory, seconds = default.memory_bytes >> 20, default.wall_s

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option("--untrusted", is_flag=True, help=f"Take {what} in a child process with limits.")
        @click.option(
            "--limit-memory", metavar="MB", type=click.IntRange(1), help=f"If untrusted [{memory}]."
        )
        @click.option(
            "--limit-seconds",
            metavar="S",
            type=click.FloatRange(0.01),
            help=f"If untrusted [{seconds:g}].",
        )
        @wraps(command)
        def trusting(
            *args: Any,
            untrusted: bool,
            limit_memory: int | None,
            limit_seconds: float | None,
            **others: Any,
        ) -> None:
            limits = None
            if limit_memory is not None or limit_seconds is not None:
                most = limit_seconds or seconds
                limits = Limits((limit_memory or memory) << 20, most, most)
            command(*args, trust={"untrusted": untrusted, "limits": limits}, **others)

        return trusting

    return decorate


sha256_option = click.option("--sha256", help="Refuse any other file; `wasmgraph inspect` prints it.")


@click.command()
@click.argument("name")
@json_option
def fetch(name: str, as_json: bool) -> None:
    """Fetch a model by NAME and print the path of its .onnx file.

    Example: wasmgraph fetch resnet50
    """
    from wasmgraph.models import MODELS
    from wasmgraph.models import fetch as fetch_model

    path = fetch_model(name, say)
    facts = {"name": name, "path": str(path), "summary": MODELS[name].summary}
    echo(json.dumps(facts, indent=1) if as_json else path)


def _pair(text: str, option: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"{option} {text!r}: expected NAME=VALUE, for example {option} {example}.")
    return name, value


def shapes_of(options: Sequence[str]) -> dict[str, tuple[int | str, ...]]:
    """The shapes of ``--shape NAME=1,3,224,224``."""
    shapes: dict[str, tuple[int | str, ...]] = {}
    for option in options:
        name, value = _pair(option, "--shape", "input=1,3,224,224")
        sizes = [size.strip() for size in value.split(",")]
        if not all(sizes):
            raise UsageError(f"--shape {option!r}: sizes must be whole numbers, or names of dimensions.")
        if any(re.fullmatch(r"-\s*\d+", size) for size in sizes):
            raise UsageError(f"--shape {option!r}: sizes must not be negative.")
        if any(re.match(r"\d", size) and not re.fullmatch(r"\d+([ +*/-].*)?", size) for size in sizes):
            raise UsageError(f"--shape {option!r}: sizes must be whole numbers, or names of dimensions.")
        shapes[name] = tuple(int(size) if size.isdecimal() else size for size in sizes)
    return shapes


def dims_of(options: Sequence[str]) -> dict[str, int | tuple[int, int]]:
    """The bounds and values of ``--dim seq=1..512`` and ``--dim batch=1``."""
    dims: dict[str, int | tuple[int, int]] = {}
    for option in options:
        name, value = _pair(option, "--dim", "seq=1..512")
        least, dots, most = value.partition("..")
        if not re.fullmatch(r"\s*\d+\s*", least) or (dots and not re.fullmatch(r"\s*\d+\s*", most)):
            raise UsageError(
                f"--dim {option!r}: expected the least and the most that it may be, {name}=1..512, or one"
                " value."
            )
        if name in dims:
            raise UsageError(f"--dim {name!r} is given twice.")
        dims[name] = (int(least), int(most)) if dots else int(least)
    return dims


def values_of(options: Sequence[str]) -> dict[str, int]:
    """The values of ``--dim seq=8``."""
    values: dict[str, int] = {}
    for name, value in dims_of(options).items():
        if not isinstance(value, int):
            raise UsageError(f"--dim {name!r} is a range; expected one value, --dim {name}={value[0]}.")
        values[name] = value
    return values


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The artifact to write."
)
@target_option
@shape_option
@dim_option
@click.option(
    "--params",
    type=click.Choice(["embedded", "wasi"]),
    default="embedded",
    show_default=True,
    help="Put the weights into the module, or into a file beside it that all wasm targets share.",
)
@click.option("--command", is_flag=True, help="Link a WASI command: raw tensors in, raw tensors out.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    help="Folder for graph.json, graph.o, graph.params, the archive and the kernels (text, machine code).",
)
@click.option("--no-winograd", is_flag=True, help="Use direct convolutions only, which are more accurate.")
@trust_options(COMPILE_LIMITS, "the model")
@json_option
def compile(
    model: Path,
    output: Path,
    target: str,
    shape: Sequence[str],
    dim: Sequence[str],
    params: Any,
    command: bool,
    keep: Path | None,
    no_winograd: bool,
    trust: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Compile an ONNX MODEL into one file.

    Example: wasmgraph compile resnet50.onnx -o resnet50.wasm --target wasm32-simd128
    """
    from wasmgraph.artifact import Artifact
    from wasmgraph.compiler import CompileLog, Stage
    from wasmgraph.compiler import compile as compile_model

    shapes, dims = shapes_of(shape), dims_of(dim)
    if not output.parent.is_dir():
        raise UsageError(f"{output}: there is no directory {output.parent}.")

    with progress(sum(_STAGES.values()), "compiling") as advance:

        def show(stage: Stage) -> None:
            if stage.seconds:
                note(f"{stage.name:<10}{stage.seconds:7.2f} s  {stage.outcome}")
                advance(sum(_STAGES.get(done.name, 0) for done in log.stages))

        log = CompileLog(observer=show)
        artifact = compile_model(
            model,
            target=target,
            shapes=shapes,
            dims=dims,
            params=params,
            keep=keep,
            winograd=not no_winograd,
            log=log,
            command=command,
            **trust,
        )
        artifact.save(output)
    note(_coverage(log))
    for said in log.notes:
        note(f"note: {said}")
    if not as_json:
        echo(output)
        return
    stages = {stage.name: stage.seconds for stage in log.stages}
    rules = dict(log.rules.most_common())
    facts = _facts(Artifact.open(output))
    echo(json.dumps(facts | {"seconds": stages, "rules": rules}, indent=1))


def _coverage(log: CompileLog) -> str:
    total = log.rules.total()
    fallen = len(log.fallbacks)
    counts = ", ".join(f"{rule} {n}" for rule, n in log.rules.most_common())
    text = f"{total - fallen} of {total} calls scheduled ({counts})"
    if fallen:
        text += f"; {fallen} fell back to unscheduled code: {', '.join(sorted(set(log.fallbacks)))}"
    if log.slow:
        text += f"; slow, because their rule is not made for products: {', '.join(sorted(set(log.slow)))}"
    return text


def arrays_of(options: Sequence[str]) -> dict[str, Array]:
    """The arrays of ``--input NAME=x.npy``."""
    import numpy as np

    feeds = {}
    for option in options:
        name, path = _pair(option, "--input", "input=x.npy")
        try:
            feeds[name] = np.load(path, allow_pickle=False)
        except OSError as error:
            raise InputError(f"--input {name}: {path}: {error.strerror or error}.") from error
        except Exception as error:  # numpy passes on any exception of its parsers
            raise InputError(f"--input {name}: {path} is not a .npy file: {error}") from error
        if not isinstance(feeds[name], np.ndarray):
            raise InputError(f"--input {name}: {path} is not a .npy file, but an archive of them.")
    return feeds


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=x.npy", help="An input's array; repeatable."
)
@value_option
@strict_option
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The .npz file to write.")
@click.option("--runtime", help="wasmtime, node, tvm or onnxruntime (default: by the file's kind).")
@threads_option
@params_option
@sha256_option
@trust_options(Limits(), "the artifact")
@json_option
def run(
    artifact: Path,
    inputs: Sequence[str],
    dim: Sequence[str],
    strict: bool,
    output: Path,
    runtime: str | None,
    threads: int,
    params_dir: Path | None,
    sha256: str | None,
    trust: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Run an ARTIFACT (or .onnx file) on arrays from .npy files.

    Example: wasmgraph run resnet50.wasm --input input=x.npy --output out.npz
    """
    import zipfile

    import numpy as np

    from wasmgraph.files import replacing
    from wasmgraph.runtimes import load

    feeds, values = arrays_of(inputs), values_of(dim)
    with load(
        artifact, runtime=runtime, threads=threads, sha256=sha256, params_folder=params_dir, **trust
    ) as session:
        outputs = session.run(feeds, strict=strict, dims=values or None)
    try:
        # np.savez does not accept an output called "file".
        with replacing(output) as stream, zipfile.ZipFile(stream, "w") as archive:
            for name, array in outputs.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}.") from error
    if as_json:
        shapes = {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in outputs.items()}
        echo(json.dumps({"output": str(output), "outputs": shapes}, indent=1))
        return
    for name, array in outputs.items():
        echo(f"{name}: {array.dtype}{list(array.shape)}")


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--top", default=5, show_default=True, type=click.IntRange(1), help="How many classes to show."
)
@sha256_option
@trust_options(Limits(), "the artifact")
@json_option
def classify(
    artifact: Path,
    photos: Sequence[Path],
    top: int,
    sha256: str | None,
    trust: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Classify PHOTOS with an ARTIFACT that carries preprocessing and labels.

    Example: wasmgraph classify resnet50.wasm photo.jpg
    """
    from wasmgraph.artifact import Artifact
    from wasmgraph.models.description import CLASSIFICATION, Classification
    from wasmgraph.models.photos import decode, preprocess
    from wasmgraph.runtimes import load

    opened = Artifact.open(artifact)
    description = opened.manifest.description
    if description.get("task") != CLASSIFICATION:
        raise UsageError(
            f"{artifact} does not say how to classify photographs: its model carries no description"
            " of its preprocessing and labels. Use `wasmgraph run` with prepared arrays."
        )
    said = Classification.of(description, opened.inputs, opened.outputs)
    inputs = [preprocess(decode(photo), said.preprocessing) for photo in photos]
    found: dict[str, list[tuple[str, float]]] = {}
    with load(opened, sha256=sha256, **trust) as session:
        for photo, array in zip(photos, inputs, strict=True):
            probabilities = session.run({said.input: array}, strict=False)[said.probabilities].ravel()
            best = probabilities.argsort()[::-1][:top]
            found[str(photo)] = [(said.labels[i], float(probabilities[i])) for i in best]
    if as_json:
        named = {p: [{"label": n, "probability": q} for n, q in best] for p, best in found.items()}
        echo(json.dumps(named, indent=1))
        return
    for name, classes in found.items():
        echo(name)
        for label, probability in classes:
            echo(f"  {probability:7.2%}  {label}")


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("sentences", nargs=-1, required=True)
@click.option(
    "--tokenizer",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A tokenizer.json [that of the model, from the cache].",
)
@sha256_option
@trust_options(Limits(), "the artifact")
@json_option
def embed(
    artifact: Path,
    sentences: Sequence[str],
    tokenizer: Path | None,
    sha256: str | None,
    trust: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Make a vector of each of the SENTENCES with an ARTIFACT of a network of text.

    One sentence gives its vector, as JSON; several give the cosine of each pair, from -1 to 1: the more
    alike their meanings, the closer to 1. --json gives both.

    Example: wasmgraph embed minilm.wasm "A man eats pasta." "Someone is having a meal."
    """
    from wasmgraph.artifact import Artifact
    from wasmgraph.measure.accuracy import cosines
    from wasmgraph.models import fetch_tokenizer
    from wasmgraph.models.description import EMBEDDING, Embedding
    from wasmgraph.models.text import feeds_of, read_tokenizer, tokenize, vectors_of
    from wasmgraph.runtimes import load

    opened = Artifact.open(artifact)
    description = opened.manifest.description
    if description.get("task") != EMBEDDING:
        raise UsageError(
            f"{artifact} does not say how to embed sentences: its model carries no description of that. Use"
            " `wasmgraph run` with prepared arrays."
        )
    dims = {dim.name: dim for dim in opened.manifest.dims}
    said = Embedding.of(description, [spec.largest(dims) for spec in opened.inputs])
    if tokenizer is None:
        if said.tokenizer is None:
            raise UsageError(f"{artifact} names no tokenizer: give its tokenizer.json with --tokenizer.")
        tokenizer = fetch_tokenizer(said.tokenizer, say)
    texts = tokenize(read_tokenizer(tokenizer), sentences, said.length)
    for number, text in enumerate(texts, 1):
        if text.whole > len(text.ids):
            note(
                f"warning: sentence {number} has {text.whole} tokens, the graph takes {said.length}: its"
                " end is left out."
            )
    said = said.fitted(opened.inputs[0].shape, len(texts), max(len(text.ids) for text in texts))
    with load(opened, sha256=sha256, **trust) as session:
        outputs = [session.run(feeds, strict=False) for feeds in feeds_of(said, texts)]
    vectors = vectors_of(said, outputs, len(texts))
    alike = cosines(vectors, vectors).round(4).tolist()
    listed = [[float(f"{value:.8g}") for value in vector] for vector in vectors]
    if as_json:
        pairs = zip(sentences, listed, strict=True)
        found = [{"sentence": sentence, "vector": vector} for sentence, vector in pairs]
        echo(json.dumps({"sentences": found, "cosines": alike}))
    elif len(sentences) == 1:
        echo(json.dumps(listed[0]))
    else:
        echo("".join(f"{number:8}" for number in range(1, len(sentences) + 1)))
        for number, (row, sentence) in enumerate(zip(alike, sentences, strict=True), 1):
            echo("".join(f"{cosine:8.3f}" for cosine in row) + f"  {number}  {sentence}")


def _instructions(artifact: Artifact) -> dict[str, int]:
    """Counts of instructions by kind; empty for native code."""
    from wasmgraph.wasm.wasmcode import ATOMIC, SIMD, opcodes, relaxed_count

    if artifact.module is None:
        return {}
    with artifact.path.open("rb") as stream:
        found = opcodes(stream, artifact.module)
    relaxed = relaxed_count(found)
    return {
        "all": found.total(),
        "simd": sum(n for (prefix, _), n in found.items() if prefix == SIMD) - relaxed,
        "relaxed_simd": relaxed,
        "atomic": sum(n for (prefix, _), n in found.items() if prefix == ATOMIC),
    }


def _facts(artifact: Artifact) -> dict[str, Any]:
    from wasmgraph.artifact import PARAMS_FOLDER

    manifest = artifact.manifest
    size = artifact.path.stat().st_size
    return {
        "file": str(artifact.path),
        "kind": manifest.kind,
        "sha256": artifact.sha256,
        "model": manifest.model_name,
        "model_sha256": manifest.model_sha256,
        "weights": manifest.weights,
        "target": manifest.target,
        "features": list(manifest.features or manifest.cpu_features),
        "inputs": [str(spec) for spec in artifact.inputs],
        "dims": [str(dim) for dim in manifest.dims],
        "outputs": [str(spec) for spec in artifact.outputs],
        "imports": [".".join(i[:2]) for i in artifact.module.imports] if artifact.module else None,
        "exports": sorted(artifact.module.exports) if artifact.module else None,
        "instructions": _instructions(artifact),
        "bytes": size,
        "module_bytes": size - manifest.embedded_bytes,
        "param_bytes": manifest.param_bytes,
        "params": manifest.params,
        "params_file": f"{PARAMS_FOLDER}/{manifest.params_file}" if manifest.params_file else None,
        "command": manifest.command,
        "arena_bytes": manifest.arena_bytes,
        "calls": len(manifest.steps),
        "kernels": manifest.kernels,
        "ops_scheduled": manifest.ops_scheduled,
        "ops_fallback": manifest.ops_fallback,
        "ops_slow": manifest.ops_slow,
        "notes": list(manifest.notes),
        "schema": manifest.schema,
        "versions": dict(manifest.versions),
    }


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@json_option
def inspect(artifact: Path, as_json: bool) -> None:
    """Show what an ARTIFACT is: inputs, outputs, target, sizes, imports, versions, digest.

    Example: wasmgraph inspect resnet50.wasm
    """
    from wasmgraph.artifact import Artifact

    facts = _facts(Artifact.open(artifact))
    if as_json:
        echo(json.dumps(facts, indent=1))
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items()) or None
        elif isinstance(value, list):
            value = "; ".join(value) or "none"
        elif isinstance(value, int) and key.endswith("bytes"):
            value = f"{value:,}"
        if value is not None:
            echo(f"{key:<14}{value}")


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@value_option
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="Runs of the plan. The default is as many as fit in five seconds, at least ten.",
)
@threads_option
@json_option
def profile(artifact: Path, dim: Sequence[str], rounds: int | None, threads: int, as_json: bool) -> None:
    """Show where an ARTIFACT spends its time: per kernel, against the roofline of its target.

    Inputs are seeded noise. An open dimension has its greatest value unless --dim says another. A Winograd
    convolution's GFLOP/s count its operations as if it were direct, for comparison; they may exceed the
    roofline.

    Example: wasmgraph profile resnet50.wasm
    """
    from dataclasses import asdict

    import numpy as np

    from wasmgraph.artifact import Artifact
    from wasmgraph.compiler import build_roofline
    from wasmgraph.measure.profile import by_kernel, profile_steps
    from wasmgraph.runtimes import load
    from wasmgraph.tensors import check_values, noise

    opened = Artifact.open(artifact)
    values = {dim.name: dim.most for dim in opened.manifest.dims} | values_of(dim)
    check_values(opened.manifest.dims, values)
    feeds = noise([spec.at(values) for spec in opened.inputs], np.random.default_rng(0))
    roof = build_roofline(opened.manifest.target)
    with (
        load(opened, threads=threads) as session,
        load(roof, threads=threads) as limit,
        progress(1, "profiling") as advance,
    ):
        steps = [step.at(values) for step in opened.manifest.steps]
        roof_steps = [step.at({}) for step in roof.manifest.steps]
        least, seconds = (rounds, 0.0) if rounds else (10, 5.0)
        measured = profile_steps(session, feeds, steps, limit, roof_steps, least, seconds, threads, advance)
    found, roofline = by_kernel(measured), measured.roofline
    if as_json:
        rows = [asdict(row) for row in found]
        echo(json.dumps({"roofline": asdict(roofline), "kernels": rows}, indent=1))
        return
    from wasmgraph.report.terminal import profile_table

    profile_table([asdict(row) for row in found], asdict(roofline), console())
