"""Linear models, trees and their preprocessing, of ``ai.onnx.ml``, with numeric inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import numpy_helper

from wasmgraph.compiler.importing.frontend.converters.arithmetic import cast_to
from wasmgraph.compiler.importing.frontend.converters.moving import take, take_along
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, shape_of, size_array
from wasmgraph.errors import ModelError
from wasmgraph.tensors import Array

_DOMAIN = "ai.onnx.ml"
_MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
_COMPARE = ("LessOrEqual", "Less", "GreaterOrEqual", "Greater", "Equal")
_LEAF = len(_MODES)


def _axis(*values: int) -> Array:
    return size_array(values)


@converts("ArrayFeatureExtractor", domain=_DOMAIN)
def array_feature_extractor(op: Operator, data: Value, places: Value) -> Any:
    """Select columns."""
    rank = len(shape_of(data))
    found = op("Gather", data, op("Reshape", places, _axis(-1)), axis=rank - 1)
    return op("Reshape", found, _axis(1, -1)) if rank == 1 else found


@converts("Binarizer", domain=_DOMAIN)
def binarizer(op: Operator, data: Value) -> Any:
    """1 above the threshold, else 0."""
    limit = np.array(op.attr("threshold", 0.0), dtype_of(data))
    return cast_to(op, op("Greater", data, limit), dtype_of(data))


@converts("Scaler", domain=_DOMAIN)
def scaler(op: Operator, data: Value) -> Any:
    """(x − offset)·scale, with an offset and a scale per feature."""
    offset, scale = (np.array(op.attr(name), np.float32) for name in ("offset", "scale"))
    return op("Mul", op("Sub", cast_to(op, data, "float32"), offset), scale)


@converts("Normalizer", domain=_DOMAIN)
def normalizer(op: Operator, data: Value) -> Any:
    """Divide rows by their norm."""
    data, norm = cast_to(op, data, "float32"), op.attr("norm", "MAX")
    last = _axis(len(shape_of(data)) - 1)
    if norm == "MAX":
        by = op("ReduceMax", data, last, keepdims=1)
    else:
        by = op("ReduceL1" if norm == "L1" else "ReduceL2", data, last, keepdims=1)
    zero = np.array(0, np.float32)
    return op("Div", data, op("Where", op("Equal", by, zero), np.array(1, np.float32), by))


@converts("LabelEncoder", domain=_DOMAIN)
def label_encoder(op: Operator, data: Value) -> Any:
    """Map keys to values; elements that are not a key become the default."""
    keys, values, default = _table(op)
    if keys.dtype.kind not in "if" or values.dtype.kind not in "if":
        raise op.unsupported("of strings")
    wide = op("Unsqueeze", data, _axis(len(shape_of(data))))
    same = op("Equal", wide, keys.astype(dtype_of(data)))
    if keys.dtype.kind == "f" and np.isnan(keys).any():
        same = op("Or", same, op("And", op("IsNaN", wide), np.isnan(keys)))
    ranked = op("Cast", same, to=6)
    last = len(shape_of(wide)) - 1
    found = take(op, values, op("ArgMax", ranked, axis=last, keepdims=0))
    known = op("Cast", op("ReduceMax", ranked, _axis(last), keepdims=0), to=9)
    return op("Where", known, found, default)


def _table(op: Operator) -> tuple[Array, Array, Array]:
    def read(prefix: str) -> Array:
        tensor = op.attributes.get(f"{prefix}_tensor")
        if tensor is not None:
            return numpy_helper.to_array(tensor).reshape(-1)
        for suffix, dtype in (("int64s", np.int64), ("floats", np.float32), ("strings", object)):
            if op.attr(f"{prefix}_{suffix}") is not None:
                return np.array(op.attr(f"{prefix}_{suffix}"), dtype)
        raise op.unsupported(f"without {prefix}")

    values = read("values")
    tensor = op.attributes.get("default_tensor")
    if tensor is not None:
        default = numpy_helper.to_array(tensor).reshape(())
    elif values.dtype == np.int64:
        default = size_array(op.attr("default_int64", -1))
    else:
        default = np.array(op.attr("default_float", -0.0), np.float32)
    return read("keys"), values, default


def _post_transform(op: Operator, scores: Value) -> Any:
    kind = op.attr("post_transform", "NONE")
    if isinstance(kind, int):  # TreeEnsemble has numbers instead of names
        kind = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")[kind]
    if kind == "NONE":
        return scores
    if kind == "LOGISTIC":
        return op("Sigmoid", scores)
    if kind == "SOFTMAX":
        return op("Softmax", scores, axis=-1)
    raise op.unsupported(f"with the post_transform {kind}")


def _rows(op: Operator, data: Value, dtype: str = "float32") -> Any:
    data = cast_to(op, data, dtype)
    return op("Reshape", data, _axis(1, -1)) if len(shape_of(data)) == 1 else data


@converts("LinearRegressor", domain=_DOMAIN)
def linear_regressor(op: Operator, data: Value) -> Any:
    """A matrix product, plus an intercept for each target."""
    targets = int(op.attr("targets", 1))
    weights = np.array(op.attr("coefficients"), np.float32).reshape(targets, -1)
    found = op("MatMul", _rows(op, data), np.ascontiguousarray(weights.T))
    if op.attr("intercepts"):
        found = op("Add", found, np.array(op.attr("intercepts"), np.float32))
    return _post_transform(op, found)


@converts("LinearClassifier", domain=_DOMAIN)
def linear_classifier(op: Operator, data: Value) -> Any:
    """Scores by a matrix product; the label is that of the highest score."""
    labels = _labels(op, "classlabels_ints", "classlabels_strings")
    intercepts = np.array(op.attr("intercepts") or [0.0], np.float32)
    weights = np.array(op.attr("coefficients"), np.float32).reshape(len(intercepts), -1)
    scores = op("Add", op("MatMul", _rows(op, data), np.ascontiguousarray(weights.T)), intercepts)
    return _classified(op, scores, labels)


def _labels(op: Operator, integers: str, strings: str) -> Array:
    if op.attr(strings):
        raise op.unsupported("with labels that are strings; give it integers")
    return size_array(op.attr(integers))


def _classified(op: Operator, scores: Value, labels: Array) -> Any:
    """Labels and scores; for two classes there may be only one score."""
    if shape_of(scores)[1] == 1 and len(labels) == 2:
        positive = _post_transform(op, scores)
        limit = 0.5 if op.attr("post_transform", "NONE") == "LOGISTIC" else 0.0
        above = op("Greater", op("Reshape", positive, _axis(-1)), np.array(limit, np.float32))
        one = np.array(1, np.float32) if limit else np.array(0, np.float32)
        both = op("Concat", op("Sub", one, positive), positive, axis=1)
        return op("Where", above, labels[1], labels[0]), both
    best = op("ArgMax", scores, axis=1, keepdims=0)
    return take(op, labels, best), _post_transform(op, scores)


@dataclass
class _Trees:
    """The nodes of all trees in flat arrays. A leaf is its own successor. ``weights`` are (nodes,
    targets)."""

    roots: Array
    features: Array
    thresholds: Array
    modes: Array
    true: Array
    false: Array
    nan_true: Array
    weights: Array

    @property
    def depth(self) -> int:
        """Steps from a root to its farthest leaf."""
        frontier, steps = set(map(int, self.roots)), 0
        while any(self.modes[n] != _LEAF for n in frontier):
            inner = [n for n in frontier if self.modes[n] != _LEAF]
            frontier = {int(child) for n in inner for child in (self.true[n], self.false[n])}
            steps += 1
            if steps > len(self.modes):
                raise ValueError("a tree's branches lead back to where they came from")
        return steps


def _leaves(op: Operator, data: Value, trees: _Trees) -> Any:
    """Return the leaf that each row reaches in each tree, (rows, trees)."""
    batch, columns = shape_of(data)
    nodes = [*trees.roots, *trees.true, *trees.false]
    if not 0 <= min(nodes) <= max(nodes) < len(trees.modes):
        raise ModelError("a tree has a branch to a node that does not exist")
    if not 0 <= trees.features.min() <= trees.features.max() < columns:
        raise ModelError(f"a tree looks at feature {trees.features.max()}, there are {columns}")
    at: Value = np.tile(trees.roots.astype(np.int64), (int(batch), 1))
    used = sorted({int(m) for m in trees.modes} - {_LEAF})
    for _ in range(trees.depth):
        value = take_along(op, data, take(op, trees.features, at), 1)
        limit, mode = take(op, trees.thresholds, at), take(op, trees.modes, at)
        taken: Any = None
        for kind in used:
            if kind < len(_COMPARE):
                holds = op(_COMPARE[kind], value, limit)
            else:
                holds = op("Not", op("Equal", value, limit))
            if len(used) > 1:
                holds = op("And", holds, op("Equal", mode, size_array(kind)))
            taken = holds if taken is None else op("Or", taken, holds)
        if trees.nan_true.any():
            missing = op("And", op("IsNaN", value), take(op, trees.nan_true, at))
            taken = op("Or", taken, missing)
        at = op("Where", taken, take(op, trees.true, at), take(op, trees.false, at))
    return at


def _aggregated(op: Operator, data: Value, trees: _Trees, how: str, base: Sequence[float]) -> Any:
    """Aggregate the weights of the leaves over all trees, (rows, targets)."""
    data = _rows(op, data, str(trees.thresholds.dtype))
    said = take(op, trees.weights, _leaves(op, data, trees))
    reduction = {"SUM": "ReduceSum", "AVERAGE": "ReduceSum", "MIN": "ReduceMin", "MAX": "ReduceMax"}[how]
    found = op(reduction, said, _axis(1), keepdims=0)
    if how == "AVERAGE":
        found = op("Div", found, np.array(len(trees.roots), trees.weights.dtype))
    if len(base):
        found = op("Add", found, np.array(base, trees.weights.dtype))
    return found


def _classic_trees(op: Operator, prefix: str, targets: int) -> _Trees:
    """Read the trees from the attributes of TreeEnsembleRegressor or TreeEnsembleClassifier."""

    def column(name: str, dtype: Any) -> Array:
        tensor = op.attributes.get(f"{name}_as_tensor")
        return numpy_helper.to_array(tensor) if tensor is not None else np.array(op.attr(name, []), dtype)

    tree, node = column("nodes_treeids", np.int64), column("nodes_nodeids", np.int64)
    place = {key: n for n, key in enumerate(zip(tree.tolist(), node.tolist(), strict=True))}
    names = op.attr("nodes_modes")
    unknown = set(names) - {*_MODES, "LEAF"}
    if unknown:
        raise op.unsupported(f"with nodes of the mode {', '.join(sorted(unknown))}")
    modes = size_array([_LEAF if m == "LEAF" else _MODES.index(m) for m in names])
    own = np.arange(len(modes))

    def successor(name: str) -> Array:
        wanted = column(name, np.int64)
        there = zip(tree.tolist(), wanted.tolist(), modes.tolist(), own.tolist(), strict=True)
        return size_array([n if m == _LEAF else place[t, w] for t, w, m, n in there])

    said = column(f"{prefix}_weights", np.float32)
    weights = np.zeros((len(modes), targets), said.dtype)
    ids = column(f"{prefix}_ids", np.int64)
    keys = zip(op.attr(f"{prefix}_treeids"), op.attr(f"{prefix}_nodeids"), strict=True)
    for key, target, value in zip(keys, ids, said, strict=True):
        weights[place[key], target] += value
    missing = op.attr("nodes_missing_value_tracks_true") or [0] * len(modes)
    _, roots = np.unique(tree, return_index=True)
    return _Trees(
        roots,
        column("nodes_featureids", np.int64),
        column("nodes_values", np.float32),
        modes,
        successor("nodes_truenodeids"),
        successor("nodes_falsenodeids"),
        np.array(missing, bool),
        weights,
    )


@converts("TreeEnsembleRegressor", domain=_DOMAIN)
def tree_ensemble_regressor(op: Operator, data: Value) -> Any:
    """The sum, average, minimum or maximum of the trees' leaves."""
    trees = _classic_trees(op, "target", int(op.attr("n_targets", 1)))
    base = op.attr("base_values", [])
    found = _aggregated(op, data, trees, op.attr("aggregate_function", "SUM"), base)
    return _post_transform(op, found)


@converts("TreeEnsembleClassifier", domain=_DOMAIN)
def tree_ensemble_classifier(op: Operator, data: Value) -> Any:
    """The sums of each class's leaves; the label is that of the highest sum."""
    labels = _labels(op, "classlabels_int64s", "classlabels_strings")
    alone = set(op.attr("class_ids")) if len(labels) == 2 else set()
    if len(alone) == 1 and alone != {0}:
        raise op.unsupported(f"with scores for the class {alone.pop()} of two alone")
    trees = _classic_trees(op, "class", 1 if len(alone) == 1 else len(labels))
    scores = _aggregated(op, data, trees, "SUM", op.attr("base_values", []))
    if len(alone) == 1:  # the only score belongs to the second class
        transformed = op.attr("post_transform", "NONE") not in ("NONE", "PROBIT")
        rest = op("Neg", scores) if transformed else op("Sub", np.array(1, np.float32), scores)
        scores = op("Concat", rest, scores, axis=1)
    return _classified(op, scores, labels)


@converts("TreeEnsemble", domain=_DOMAIN)
def tree_ensemble(op: Operator, data: Value) -> Any:
    """Trees in the form of opset 5, which stores branches and leaves separately."""
    modes = numpy_helper.to_array(op.attributes["nodes_modes"]).astype(np.int64)
    splits = numpy_helper.to_array(op.attributes["nodes_splits"])
    if (modes > 5).any():
        # Set membership would need one comparison for each member.
        raise op.unsupported("with branches on set membership; export it with one branch for each member")
    inner = len(modes)
    targets = int(op.attr("n_targets"))
    ids = size_array(op.attr("leaf_targetids"))
    said = numpy_helper.to_array(op.attributes["leaf_weights"])
    leaves = len(ids)
    weights = np.zeros((inner + leaves, targets), said.dtype)
    weights[inner + np.arange(leaves), ids] = said

    def successor(side: str) -> Array:
        places = size_array(op.attr(f"nodes_{side}nodeids"))
        leaf = np.array(op.attr(f"nodes_{side}leafs"), bool)
        return np.concatenate([np.where(leaf, places + inner, places), inner + np.arange(leaves)])

    def padded(values: Any, fill: Any) -> Array:
        return np.concatenate([np.asarray(values), np.full(leaves, fill)])

    # nodes_modes numbers the modes LEQ, LT, GTE, GT, EQ, NEQ in the order of _MODES.
    trees = _Trees(
        size_array(op.attr("tree_roots")),
        padded(op.attr("nodes_featureids"), 0).astype(np.int64),
        padded(splits, 0).astype(splits.dtype),
        padded(modes, _LEAF).astype(np.int64),
        successor("true"),
        successor("false"),
        padded(op.attr("nodes_missing_value_tracks_true") or [0] * inner, 0).astype(bool),
        weights,
    )
    how = ("AVERAGE", "SUM", "MIN", "MAX")[int(op.attr("aggregate_function", 1))]
    dtype = dtype_of(data)
    found = _aggregated(op, data, trees, how, [])
    return cast_to(op, _post_transform(op, found), dtype)
