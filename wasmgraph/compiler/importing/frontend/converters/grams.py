"""Counts of n-grams: how often runs of numbers are in rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from tvm import te, tirx

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, shape_of, size_array
from wasmgraph.tensors import Array


@converts("TfIdfVectorizer")
def tf_idf_vectorizer(op: Operator, data: Value) -> Any:
    """A column for each n-gram of the pool, which has those of one number first, then those of two. Between
    the numbers of an n-gram, ``max_skip_count`` others may lie, equally many everywhere."""
    if op.attr("pool_int64s") is None:
        raise op.unsupported("of text")
    shape = shape_of(data)
    rows = op("Reshape", data, size_array([1, shape[0]])) if len(shape) == 1 else data
    pool, starts = np.array(op.attr("pool_int64s")), [*op.attr("ngram_counts"), None]
    columns, weights = op.attr("ngram_indexes"), op.attr("weights")
    counted: list[Value] = []
    places: list[int] = []
    first = 0
    for length, (begin, end) in enumerate(pairwise(starts), 1):
        grams = pool[begin:end].reshape(-1, length)
        if len(grams) and op.attr("min_gram_length") <= length <= op.attr("max_gram_length"):
            counted.append(_counts(op, rows, grams, op.attr("max_skip_count")))
            places += range(first, first + len(grams))
        first += len(grams)
    width = max(columns) + 1
    if not counted:
        return np.zeros([*shape[:-1], width], np.float32)
    found = op("Concat", *counted, axis=1) if len(counted) > 1 else counted[0]
    if op.attr("mode") == "IDF":
        found = op("Cast", op("Greater", found, np.array(0, np.float32)), to=1)
    table = np.zeros((len(places), width), np.float32)
    for row, place in enumerate(places):
        factor = 1.0 if op.attr("mode") == "TF" or not weights else weights[place]
        table[row, columns[place]] = factor
    return op("Reshape", op("MatMul", found, table), size_array([*shape[:-1], width]))


def _counts(op: Operator, rows: Value, grams: Array, skips: int) -> Value:
    """How often each n-gram is in each row, float32 ``[rows][n-grams]``."""
    (count, length), (number, size), dtype = grams.shape, shape_of(rows), dtype_of(rows)
    steps = 1 + (skips if length > 1 else 0)

    def compute(x: te.Tensor, gram: te.Tensor) -> te.Tensor:
        at, step = te.reduce_axis((0, size), name="at"), te.reduce_axis((0, steps), name="step")

        def one(row: Any, n: Any) -> Any:
            apart = step.var + 1
            same = at.var + apart * (length - 1) < size
            for part in range(length):
                place = tirx.Min(at.var + apart * part, size - 1)
                same = tirx.all(same, x[row, place] == gram[n, part])
            return te.sum(tirx.Select(same, 1.0, 0.0).astype("float32"), axis=[at, step])

        return te.compute((number, count), one, name="counts")

    return op.walk.te(compute, rows, grams.astype(dtype), name="ngrams", alone=True)
