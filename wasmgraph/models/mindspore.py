"""MindSpore cells as ONNX models."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasmgraph.errors import ModelError, UsageError, needing

if TYPE_CHECKING:
    import onnx


def from_mindspore(cell: Any, *inputs: Any, outputs: Sequence[str] = ()) -> onnx.ModelProto:
    """Export a MindSpore network, parameters and all, for :func:`wasmgraph.compile`.

    Parameters
    ----------
    cell : a ``mindspore.nn.Cell``; it is exported as in inference (``set_train(False)``)
    inputs : ``mindspore.Tensor`` of the shapes and dtypes that the network will get; their values
        do not matter. The ONNX inputs have the names of ``construct``'s parameters.
    outputs : names for the outputs, in order; without them ``output``, or ``output_0``, ``output_1``, …

    Raises
    ------
    MissingDependencyError
        MindSpore is not installed.
    UsageError
        ``cell`` is not a cell, or there are not as many outputs as names.
    ModelError
        MindSpore cannot express the network in ONNX; its reason is in the message.
    """
    with needing("exporting a MindSpore cell", "mindspore"):
        import mindspore
        import mindspore.onnx
        import onnx
    if not isinstance(cell, mindspore.nn.Cell):
        raise UsageError(f"from_mindspore takes a mindspore.nn.Cell, not a {type(cell).__name__}.")
    with tempfile.TemporaryDirectory(prefix="wasmgraph-") as place:
        path = Path(place) / "cell.onnx"
        try:
            mindspore.onnx.export(cell, *inputs, file_name=str(path))
            model = onnx.load(path)
        except (RuntimeError, TypeError, ValueError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"MindSpore cannot export {type(cell).__name__} to ONNX: {reason} Express that part with "
                "operators that mindspore.onnx.export knows."
            ) from error
        finally:
            # Export rewrites the compiled graph: a second export of the cell would fail.
            for phase in [p for p in cell.compile_cache if p.startswith("export.onnx")]:
                cell.compile_cache.discard(phase)
    found = [value.name for value in model.graph.output]
    wanted = list(outputs) or ["output"] * (len(found) == 1) or [f"output_{i}" for i in range(len(found))]
    if len(wanted) != len(found):
        raise UsageError(
            f"{type(cell).__name__} has {len(found)} outputs, {len(wanted)} are named: {', '.join(wanted)}."
        )
    # Not with export's own output_names: if an output is also used inside, those uses keep the old name.
    _rename(model.graph, dict(zip(found, wanted, strict=True)))
    return model


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in graph.output:
        value.name = names[value.name]
