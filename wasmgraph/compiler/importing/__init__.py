"""Stage 2: imports an ONNX model as a Relax module: reads it, binds shapes, simplifies and converts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm

from wasmgraph.compiler.importing import frontend
from wasmgraph.compiler.importing.binding import (
    Bounds,
    Shapes,
    bind_shapes,
    check_dims,
    check_shapes,
    description_of,
    may_be_computed,
)
from wasmgraph.compiler.importing.frontend.values import IndexCheck
from wasmgraph.compiler.importing.reading import Model, Source, check_operators, read_model
from wasmgraph.compiler.importing.simplifying import optimize
from wasmgraph.dims import Dim
from wasmgraph.tensors import TensorSpec


@dataclass(frozen=True)
class ImportedModel:
    """A Relax module and information about the model that it was made from.

    ``inputs`` and ``outputs`` are in the order of the module's ``main``, under their ONNX names.
    ``constant_outputs`` depend on no input and were computed during import. After its outputs, ``main``
    returns a code for each of ``checks``. Shapes depend on ``dims``; the values of ``counts`` among them
    are computed, and ``main`` returns them last. ``notes`` are for the user.
    """

    name: str
    sha256: str
    description: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    constant_outputs: tuple[str, ...]
    checks: tuple[IndexCheck, ...] = ()
    dims: tuple[Dim, ...] = ()
    counts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def import_model(
    source: Source,
    shapes: Shapes | None = None,
    most_bytes: int | None = None,
    dims: Bounds | None = None,
) -> tuple[tvm.IRModule, ImportedModel]:
    """Read, bind, check, simplify and convert a model; ``most_bytes`` as for :func:`read_model`. ``dims``
    are the bounds of dimensions that stay open.

    Raises
    ------
    ModelError
        The model cannot be read, is invalid, or cannot be converted.
    UnboundDimensionError
        A dimension of an input has no value and no bounds.
    UnsupportedOperatorError
        The model uses operators without an implementation.
    UsageError
        ``source`` is not a model, or ``shapes`` or ``dims`` is no valid mapping.
    """
    checked, (opened, values) = check_shapes(shapes), check_dims(dims)
    model = read_model(source, most_bytes, apart=True)
    open_dims, asked = bind_shapes(model.proto, checked, opened, values)
    proto, notes = optimize(model.proto, model.name, model.weights)
    check_operators(proto)
    converted = frontend.convert(proto, model.name, model.weights, open_dims, asked)
    module, inputs, outputs, constant, checks, counts, all_dims = converted
    description = description_of(proto, model.name)
    imported = ImportedModel(
        model.name,
        model.sha256,
        description,
        inputs,
        outputs,
        constant,
        checks,
        all_dims,
        counts,
        (*model.notes, *notes),
    )
    return module, imported


__all__ = [
    "ImportedModel",
    "Model",
    "Source",
    "bind_shapes",
    "check_dims",
    "check_shapes",
    "import_model",
    "may_be_computed",
    "optimize",
    "read_model",
]
