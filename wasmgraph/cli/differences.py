"""The command that finds where a compiled model differs from onnxruntime."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from wasmgraph.cli.graphs import (
    arrays_of,
    dim_option,
    dims_of,
    shape_option,
    shapes_of,
    strict_option,
    target_option,
)
from wasmgraph.cli.terminal import echo, json_option, note

_DIVERGES = 1


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--against", default="onnxruntime", show_default=True, type=click.Choice(["onnxruntime"]))
@target_option
@shape_option
@dim_option
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=x.npy",
    help="An input's array; repeatable. Others are seeded noise.",
)
@strict_option
@click.option(
    "--tolerance",
    default=1e-3,
    show_default=True,
    type=click.FloatRange(0),
    help="The largest tolerated difference, relative to the largest expected value.",
)
@click.option(
    "-o",
    "--output",
    default="diverging.onnx",
    show_default=True,
    type=click.Path(path_type=Path),
    help="File for the node that differs; its inputs are saved beside it as .npz.",
)
@json_option
def diff(
    model: Path,
    against: str,
    target: str,
    shape: Sequence[str],
    dim: Sequence[str],
    inputs: Sequence[str],
    strict: bool,
    tolerance: float,
    output: Path,
    as_json: bool,
) -> None:
    """Find the first node of a MODEL whose compiled result differs from onnxruntime's. Exit code 1 if there
    is one.

    Example: wasmgraph diff model.onnx --target wasm32-simd128 --shape x=1,3,224,224
    """
    from wasmgraph.divergence import compare_with_onnxruntime

    found = compare_with_onnxruntime(
        model,
        target,
        shapes_of(shape),
        arrays_of(inputs),
        tolerance,
        output,
        note,
        strict,
        dims_of(dim),
    )
    if as_json:
        echo(json.dumps(asdict(found), indent=1, default=str))
    else:
        for name, amount in found.outputs.items():
            echo(f"output {name}: differs by {amount:.2g} of its largest value")
    at = found.divergence
    if at is None:
        return
    if not as_json:
        echo(f"first divergence: {at.operator} {at.node}, output {at.output}: {at.difference:.2g}")
        for s in at.inputs:
            echo(
                f"  input {s.name}: {s.dtype}{list(s.shape)}, {s.least:.4g} to {s.greatest:.4g},"
                f" mean {s.mean:.4g}, {s.not_finite} not finite"
            )
        echo(f"saved: {at.saved}" + ("" if at.alone else " (alone, the node does not diverge)"))
    sys.exit(_DIVERGES)
