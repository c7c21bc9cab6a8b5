"""Stage 2: imports an ONNX model as a Relax module: reads it, binds shapes, simplifies and converts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm

from wasmgraph.compiler.importing import frontend
from wasmgraph.compiler.importing.binding import Shapes, bind_shapes, check_shapes, description_of
from wasmgraph.compiler.importing.frontend.values import IndexCheck
from wasmgraph.compiler.importing.reading import Model, Source, check_operators, read_model
from wasmgraph.compiler.importing.simplifying import optimize
from wasmgraph.tensors import TensorSpec


@dataclass(frozen=True)
class ImportedModel:
    """A Relax module and information about the model that it was made from.

    ``inputs`` and ``outputs`` are in the order of the module's ``main``, under their ONNX names.
    ``constant_outputs`` depend on no input and were computed during import. After its outputs, ``main``
    returns a code for each of ``checks``. ``notes`` are for the user.
    """

    name: str
    sha256: str
    description: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    constant_outputs: tuple[str, ...]
    checks: tuple[IndexCheck, ...] = ()
    notes: tuple[str, ...] = ()


def import_model(
    source: Source, shapes: Shapes | None = None, most_bytes: int | None = None
) -> tuple[tvm.IRModule, ImportedModel]:
    """Read, bind, check, simplify and convert a model; ``most_bytes`` as for :func:`read_model`.

    Raises
    ------
    ModelError
        The model cannot be read, is invalid, or cannot be converted.
    UnboundDimensionError
        An input's shape is not static and ``shapes`` does not bind it.
    UnsupportedOperatorError
        The model uses operators without an implementation.
    UsageError
        ``source`` is not a model, or ``shapes`` is not a valid mapping of shapes.
    """
    checked = check_shapes(shapes)
    model = read_model(source, most_bytes, apart=True)
    bind_shapes(model.proto, checked)
    proto, notes = optimize(model.proto, model.name, model.weights)
    check_operators(proto)
    module, inputs, outputs, constant, checks = frontend.convert(proto, model.name, model.weights)
    description = description_of(proto, model.name)
    imported = ImportedModel(
        model.name, model.sha256, description, inputs, outputs, constant, checks, (*model.notes, *notes)
    )
    return module, imported


__all__ = ["ImportedModel", "Model", "Source", "bind_shapes", "import_model", "optimize", "read_model"]
