"""Random bounds of dimensions, and random values in and out of them: what is valid gives numpy's results,
and what is not gives an error that names the dimension.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import wasmgraph as wg
from wasmgraph.errors import FeedError, ModelError, UsageError

_TARGETS = ("wasm32-simd128", "wasm32", "native", "wasm32-simd128-threads")
_MODULES = 40  # so many bounds are compiled; values are drawn for each case
_EDGES: tuple[Any, ...] = (-1, 0, 1, 2, 7, 8, 2**31 - 1, 2**31, 2**40, True, 1.5, "8", None)


def _model() -> onnx.ModelProto:
    """Two dimensions, each of them in two inputs, and their sum."""
    value, make = helper.make_tensor_value_info, helper.make_node
    inputs = {"x": ["n", "m"], "z": ["m"], "t": ["n + m"]}
    graph = helper.make_graph(
        [
            make("Mul", ["x", "z"], ["y"]),
            make("Softmax", ["y"], ["s"], axis=-1),
            make("Concat", ["t", "z"], ["u"], axis=0),
        ],
        "values",
        [value(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [value(name, TensorProto.FLOAT, None) for name in ("y", "s", "u")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _bounds(rng: random.Random) -> dict[str, Any]:
    """Bounds that are mostly valid."""
    found: dict[str, Any] = {}
    for name in ("n", "m"):
        least = rng.choice((0, 1, 1, 2, 5))
        found[name] = (least, least + rng.choice((1, 3, 12, 40)))
    if rng.random() < 0.3:
        found[rng.choice(("n", "m", "k"))] = rng.choice(
            ((8, 1), (1, 2**31), (1, 2**31 - 1), (-1, 3), (1,), "1..8", 4, (1.5, 2), (0, 2**24))
        )
    return found


@cache
def _session(number: int) -> tuple[Mapping[str, Any], wg.Session | Exception]:
    """A graph at some bounds, or why there is none."""
    rng = random.Random(number)
    dims = _bounds(rng)
    try:
        artifact = wg.compile(_model(), target=_TARGETS[number % len(_TARGETS)], dims=dims)
        return dims, wg.load(artifact, untrusted=number % 8 == 0)
    except (UsageError, ModelError) as error:
        return dims, error


def case(seed: int, place: Path) -> str:
    """Run one graph at one value of each dimension."""
    dims, session = _session(seed % _MODULES)
    if isinstance(session, Exception):
        known = [str(name) for name in dims]
        said = any(name in str(session) for name in known)
        return f"refused: {type(session).__name__}" if said else f"unexpected: {session}"
    rng = random.Random(seed)
    values = {dim.name: rng.randint(dim.least, min(dim.most, 64)) for dim in session.dims}
    values |= {name: given for name, given in dims.items() if isinstance(given, int)}
    given: dict[str, Any] = {}
    valid = True
    shapes = {"x": [values["n"], values["m"]], "z": [values["m"]], "t": [values["n"] + values["m"]]}
    match rng.randrange(4):
        case 0:  # another size at one of two inputs, or at both
            name = rng.choice(list(shapes))
            at = rng.randrange(len(shapes[name]))
            before = shapes[name][at]
            shapes[name][at] = max(0, before + rng.choice((-1, 1, 50)))
            valid = shapes[name][at] == before
        case 1:  # a value that is given
            name = rng.choice(("n", "m", "k"))
            given[name] = rng.choice((*_EDGES, values.get(name, 1)))
            bound = {dim.name for dim in session.dims}
            valid = name in bound and type(given[name]) is int and given[name] == values[name]
        case _:
            pass
    feeds = {n: np.random.default_rng(seed).normal(0, 1, s).astype(np.float32) for n, s in shapes.items()}
    try:
        found = session.run(feeds, dims=given)
    except FeedError as error:
        return "unexpected: refused: " + str(error) if valid else "refused"
    if not valid:
        return f"unexpected: ran at {shapes} with {given}, compiled for {dims}"
    product = feeds["x"] * feeds["z"]
    powers = np.exp(product - product.max(-1, keepdims=True, initial=-np.inf))
    expected = {
        "y": product,
        "s": powers / powers.sum(-1, keepdims=True),
        "u": np.concatenate([feeds["t"], feeds["z"]]),
    }
    for name, array in expected.items():
        if found[name].shape != array.shape or not np.allclose(found[name], array, atol=1e-5):
            return f"disagrees: {name} at {values}"
    return "agrees"
