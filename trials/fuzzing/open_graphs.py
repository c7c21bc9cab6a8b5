"""Generated graphs of open dimensions, each compiled once and compared with onnxruntime at twenty values.
That a graph is refused because a dimension is open is no find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import wasmgraph as wg
from trials.fuzzing.graphs import TARGETS, is_close
from trials.fuzzing.open_generator import Generator
from wasmgraph.dims import Shape, evaluate
from wasmgraph.errors import ExecutionError, ModelError, OpenSizeError, UnsupportedOperatorError

_VALUES = 20


def feeds_of(inputs: Mapping[str, Shape], values: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Noise for inputs at these values of their dimensions."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(0, 1, [evaluate(size, values) for size in shape]).astype(np.float32)
        for name, shape in inputs.items()
    }


def case(seed: int, place: Path) -> str:
    """Compile one graph for a target, and compare its outputs with onnxruntime's at each value."""
    generator = Generator(seed)
    model = generator.model()
    path, target = place / f"{seed}.onnx", TARGETS[seed % len(TARGETS)]
    onnx.save(model, path)
    dims = {name: (dim.least, dim.most) for name, dim in generator.dims.items()}
    try:
        artifact = wg.compile(path, target=target, dims=dims)
    except (OpenSizeError, UnsupportedOperatorError) as error:
        return f"refused: {type(error).__name__}"
    except ModelError as error:
        return f"unexpected: ModelError: {error}"
    reference = _reference(model)
    with wg.load(artifact) as session:
        for number in range(_VALUES):
            values = generator.values(number)
            feeds = feeds_of(generator.inputs, values, number)
            try:
                expected = reference(feeds)
            except ExecutionError:
                continue  # onnxruntime does not take a tensor without elements everywhere
            actual = session.run(feeds)
            for name, value in expected.items():
                said = f"disagrees: {target}, {name} at {values}"
                if actual[name].shape != value.shape:
                    return f"{said}: {actual[name].shape}, expected {value.shape}"
                close, apart = is_close(actual[name], value)
                if not close:
                    return f"{said} by {apart:.1e}"
    return f"agrees: {target}"


def _reference(model: onnx.ModelProto) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """onnxruntime without optimisations, which assume sizes in places."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]

    def run(feeds: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(zip(names, session.run(names, feeds), strict=True))
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ExecutionError(str(error)) from error

    return run
