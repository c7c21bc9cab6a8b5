"""Attention: ONNX's, by its function body, and onnxruntime's forms, spelled out as matrix products and a
softmax. Queries, keys and values are ``[batch, heads, sequence, size]``.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from onnx import TensorProto
from tvm import te, tirx

from wasmgraph.compiler.importing.frontend.converters.arithmetic import counted
from wasmgraph.compiler.importing.frontend.converters.bounds import checked
from wasmgraph.compiler.importing.frontend.converters.contributed import (
    contributed,
    refuse_inputs,
    refuse_outputs,
)
from wasmgraph.compiler.importing.frontend.converters.moving import take
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, scalar, shape_of, size_array
from wasmgraph.dims import Shape, Size
from wasmgraph.errors import ModelError
from wasmgraph.tensors import Array

_LEAST = np.finfo(np.float32).min


def _sizes(*numbers: Size) -> Array:
    return size_array(numbers)


def _expect(value: Value, name: str, *shapes: Shape) -> None:
    """Raise ModelError unless an input that is given has one of these shapes."""
    if value is not None and shape_of(value) not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
        raise ModelError(f"its {name!r} has the shape {list(shape_of(value))}; it must be {wanted}")


def _head_size(width: Size, heads: Size) -> Size:
    """The size of a head. Raises ModelError if heads of equal size do not make up the width."""
    if heads < 1 or width % heads:
        raise ModelError(f"its {heads} heads do not divide the width {width}")
    return width // heads


def _rank(value: Value, name: str, *ranks: int) -> Shape:
    shape = shape_of(value)
    if len(shape) not in ranks:
        wanted = " or ".join(map(str, ranks))
        raise ModelError(f"its {name!r} has {len(shape)} dimensions; it must have {wanted}")
    return shape


@converts("Attention")
def onnx_attention(op: Operator, *inputs: Value) -> Any:
    """Check shapes whose mismatch the function body would report at a node of its own, or not at all."""
    query, key, value, mask, past = (*inputs, None, None)[:5]
    ranks = {len(_rank(v, name, 3, 4)) for v, name in ((query, "Q"), (key, "K"), (value, "V"))}
    if len(ranks) > 1:
        raise ModelError("its queries, keys and values must all have 3 dimensions or all 4")
    if ranks == {3}:
        heads: Size = int(op.attr("q_num_heads", 0))
        groups: Size = int(op.attr("kv_num_heads", 0))
        for width, count in ((query, heads), (key, groups), (value, groups)):
            _head_size(shape_of(width)[2], count)
    else:
        heads, groups = shape_of(query)[1], shape_of(key)[1]
    if heads % groups:
        raise ModelError(f"its {heads} heads are no multiple of {groups} heads of keys")
    if mask is not None:
        scores = [shape_of(query)[0], heads, shape_of(query)[-2]]
        keys = shape_of(key)[-2] + (0 if past is None else shape_of(past)[2])
        *outer, length = shape_of(mask)
        fits = len(outer) <= 3 and all(
            size in (1, wanted) for size, wanted in zip(outer[::-1], scores[::-1], strict=False)
        )
        if not fits or (length > keys if op.opset > 23 else length not in (1, keys)):
            raise ModelError(
                f"its mask of the shape {list(shape_of(mask))} does not broadcast to the scores,"
                f" {[*scores, keys]}"
            )
    return tuple(op.function(*inputs))


@converts("RotaryEmbedding")
def onnx_rotary_embedding(op: Operator, data: Value, *others: Value) -> Any:
    """Check the heads, which the function body would report at a node of its own."""
    if len(_rank(data, "X", 3, 4)) == 3:
        _head_size(shape_of(data)[2], int(op.attr("num_heads", 0)))
    return tuple(op.function(data, *others))


def _split_heads(op: Operator, value: Value, heads: Size) -> Any:
    """From ``[batch, sequence, width]`` to ``[batch, heads, sequence, size]``."""
    batch, length, width = shape_of(value)
    size = _head_size(width, heads)
    return op("Transpose", op("Reshape", value, _sizes(batch, length, heads, size)), perm=[0, 2, 1, 3])


def _join_heads(op: Operator, value: Value) -> Any:
    batch, heads, length, size = shape_of(value)
    turned = op("Transpose", value, perm=[0, 2, 1, 3])
    return op("Reshape", turned, _sizes(batch, length, heads * size))


def _part(op: Operator, value: Value, axis: int, begin: Size, end: Size) -> Any:
    return op("Slice", value, _sizes(begin), _sizes(end), _sizes(axis))


def _after(op: Operator, past: Value, new: Value) -> Any:
    """New keys or values after those of a cache, which may be empty."""
    return new if past is None or not shape_of(past)[2] else op("Concat", past, new, axis=2)


def _scale(op: Operator, size: Size) -> Array:
    return np.array(op.attr("scale", 0.0) or 1 / sqrt(size), np.float32)


def _scores(op: Operator, query: Value, key: Value, *terms: Value) -> Any:
    """Scaled products of queries and keys, plus terms that are given."""
    turned = op("Transpose", key, perm=[0, 1, 3, 2])
    scores = op("Mul", op("MatMul", query, turned), _scale(op, shape_of(query)[-1]))
    for term in terms:
        scores = scores if term is None else op("Add", scores, term)
    return scores


def _padding(
    op: Operator, mask: Value, name: str, batch: Size, queries: Size, keys: Size, spans: bool
) -> Any:
    """A term for the scores: 0 where a mask allows a key, the filter value elsewhere; None without a mask.

    A mask tells for each key, or for each query and key, whether it counts, or has the number of keys that
    count. With ``spans``, it may also have numbers of where keys end and begin to count.
    """
    if mask is None:
        return None
    shapes = [(batch,), (batch, keys), (batch, queries, keys)]
    _expect(mask, name, *shapes, *([(2 * batch,)] if spans else []))
    if shape_of(mask) == (batch, keys):
        counts = op("Unsqueeze", op("Greater", mask, np.array(0, dtype_of(mask))), _sizes(1, 2))
    elif shape_of(mask) == (batch, queries, keys):
        counts = op("Unsqueeze", op("Greater", mask, np.array(0, dtype_of(mask))), _sizes(1))
    else:
        places = counted(op, keys, dtype_of(mask))
        ends = op("Reshape", _part(op, mask, 0, 0, batch), _sizes(batch, 1, 1, 1))
        counts = op("Less", places, ends)
        if shape_of(mask) != (batch,):
            begins = op("Reshape", _part(op, mask, 0, batch, 2 * batch), _sizes(batch, 1, 1, 1))
            counts = op("And", counts, op("GreaterOrEqual", places, begins))
    fill = np.float32(op.attr("mask_filter_value", -10000.0))
    return op("Where", counts, np.float32(0), fill)


def _future(op: Operator, queries: Size, keys: Size, before: Size) -> Array | None:
    """A term that hides later keys from a query, if the operator is ``unidirectional``. Queries go with the
    keys after a cache of ``before`` keys."""
    if not op.attr("unidirectional", 0) or queries == 1:
        return None
    if keys != before + queries:
        raise op.unsupported(
            f"that is unidirectional, of {queries} queries and {keys} keys is not implemented"
        )
    return np.where(np.tri(int(queries), int(keys), int(before), dtype=np.bool_), np.float32(0), _LEAST)


def _attention_bias(bias: Value, batch: Size, heads: Size, queries: Size, keys: Size) -> Value:
    _expect(bias, "attention_bias", *((b, h, queries, keys) for b in (batch, 1) for h in (heads, 1)))
    return bias


@contributed(
    "Attention",
    *("num_heads", "scale", "mask_filter_value", "qkv_hidden_sizes", "unidirectional"),
    "rotary_embedding_dim",
    do_rotary=0,
    past_present_share_buffer=0,
)
def attention(
    op: Operator,
    data: Value,
    weights: Value,
    bias: Value = None,
    mask: Value = None,
    past: Value = None,
    attention_bias: Value = None,
    past_sequence_length: Value = None,
) -> Any:
    """Project to queries, keys and values; past and present have keys and values in one tensor."""
    refuse_inputs(op, past_sequence_length=past_sequence_length)
    batch, length, width = _rank(data, "input", 3)
    heads, total = int(op.attr("num_heads")), _rank(weights, "weights", 2)[1]
    _expect(weights, "weights", (width, total))
    _expect(bias, "bias", (total,))
    widths = list(op.attr("qkv_hidden_sizes") or [total // 3] * 3)
    if len(widths) != 3 or sum(widths) != total or widths[0] != widths[1]:
        raise ModelError(f"its queries, keys and values of {widths} do not make up weights of {total}")
    _, size, value_size = (_head_size(w, heads) for w in widths)
    query, key, value = (
        _split_heads(op, _projected(op, data, weights, bias, int(end) - part, int(end)), heads)
        for part, end in zip(widths, np.cumsum(widths), strict=True)
    )
    before: Size = 0
    if past is not None:
        before = _rank(past, "past", 5)[3]
        _expect(past, "past", (2, batch, heads, before, size))
        if value_size != size:
            raise ModelError(
                f"with 'past', keys and values must be of one size, not of {size}, {value_size}"
            )
        if before:
            old = (op("Gather", past, np.array(n), axis=0) for n in (0, 1))
            key, value = (_after(op, o, new) for o, new in zip(old, (key, value), strict=True))
    keys = shape_of(key)[2]
    if mask is not None and shape_of(mask) in ((batch, 1), (1, 1)):
        mask = None  # equal for all keys, which has no effect
    if mask is not None and (len(shape_of(mask)) == 4 or shape_of(mask) == (3 * batch + 2,)):
        raise op.unsupported(f"with a 'mask_index' of the shape {list(shape_of(mask))} is not implemented")
    terms = (
        _attention_bias(attention_bias, batch, heads, length, keys),
        _padding(op, mask, "mask_index", batch, length, keys, spans=True),
        _future(op, length, keys, before),
    )
    shares = op("Softmax", _scores(op, query, key, *terms), axis=-1)
    found = _join_heads(op, op("MatMul", shares, value))
    if op.outputs < 2:
        return found
    return found, op("Concat", *(op("Unsqueeze", v, _sizes(0)) for v in (key, value)), axis=0)


def _projected(op: Operator, data: Value, weights: Value, bias: Value, begin: Size, end: Size) -> Any:
    """A product by some columns of weights, plus their bias."""
    found = op("MatMul", data, _part(op, weights, 1, begin, end))
    return found if bias is None else op("Add", found, _part(op, bias, 0, begin, end))


@contributed("MultiHeadAttention", "num_heads", "scale", "mask_filter_value", "unidirectional")
def multi_head_attention(
    op: Operator,
    query: Value,
    key: Value = None,
    value: Value = None,
    bias: Value = None,
    key_padding_mask: Value = None,
    attention_bias: Value = None,
    past_key: Value = None,
    past_value: Value = None,
    past_sequence_length: Value = None,
    cache_indirection: Value = None,
) -> Any:
    """Queries, keys and values are separate, packed into one tensor, or already split into heads."""
    refuse_inputs(op, past_sequence_length=past_sequence_length, cache_indirection=cache_indirection)
    heads = int(op.attr("num_heads"))
    query, key, value = _unpacked(op, query, key, value, heads)
    batch, length, width = _rank(query, "query", 3)
    size = _head_size(width, heads)
    if bias is not None:
        query, key, value = _biased(op, query, key, value, bias)
    query = _split_heads(op, query, heads)
    if len(_rank(key, "key", 3, 4)) == 3:
        _expect(key, "key", (batch, shape_of(key)[1], width))
        key = _split_heads(op, key, heads)
    if len(_rank(value, "value", 3, 4)) == 3:
        value = _split_heads(op, value, heads)
    _expect(key, "key", (batch, heads, shape_of(key)[2], size))
    _expect(value, "value", (batch, heads, shape_of(key)[2], shape_of(value)[3]))
    if (past_key is None) != (past_value is None):
        raise ModelError("it must have both of 'past_key' and 'past_value' or none")
    before: Size = 0
    if past_key is not None:
        before = _rank(past_key, "past_key", 4)[2]
        _expect(past_key, "past_key", (batch, heads, before, size))
        _expect(past_value, "past_value", (batch, heads, before, shape_of(value)[3]))
        key, value = _after(op, past_key, key), _after(op, past_value, value)
    keys = shape_of(key)[2]
    if key_padding_mask is not None and shape_of(key_padding_mask) == (3 * batch + 2,):
        raise op.unsupported("with a 'key_padding_mask' of cumulated lengths is not implemented")
    scores = _scores(
        op,
        query,
        key,
        _attention_bias(attention_bias, batch, heads, length, keys),
        _padding(op, key_padding_mask, "key_padding_mask", batch, length, keys, spans=False),
        _future(op, length, keys, before),
    )
    found = _join_heads(op, op("MatMul", op("Softmax", scores, axis=-1), value))
    return (found, key, value, scores)[: max(1, op.outputs)]


def _unpacked(
    op: Operator, query: Value, key: Value, value: Value, heads: int
) -> tuple[Value, Value, Value]:
    """Take apart queries, keys and values that are one tensor, or keys and values that are."""
    if key is None and value is not None:
        raise ModelError("it has a 'value' without a 'key'")
    if key is None:
        *rest, _, _, size = _rank(query, "query", 5)
        _expect(query, "query", (*rest, heads, 3, size))
        query, key, value = (_unpack(op, query, n) for n in range(3))
    elif value is None:
        *rest, _, _, size = _rank(key, "key", 5)
        _expect(key, "key", (*rest, heads, 2, size))
        key, value = (_unpack(op, key, n) for n in range(2))
    return query, key, value


def _unpack(op: Operator, packed: Value, which: int) -> Any:
    """One tensor ``[batch, sequence, width]`` of a packed ``[batch, sequence, heads, count, size]``."""
    batch, length, heads, _, size = shape_of(packed)
    part = op("Gather", packed, np.array(which), axis=3)
    return op("Reshape", part, _sizes(batch, length, heads * size))


def _biased(op: Operator, query: Value, key: Value, value: Value, bias: Value) -> tuple[Any, ...]:
    """Add the parts of a bias of the projections."""
    if len(shape_of(key)) != 3 or len(shape_of(value)) != 3:
        raise op.unsupported(
            "with a 'bias', and keys that are already split into heads, is not implemented"
        )
    widths = [shape_of(v)[-1] for v in (query, key, value)]
    _expect(bias, "bias", (sum(widths),))
    at = np.cumsum([0, *widths])
    return tuple(
        op("Add", v, _part(op, bias, 0, int(at[n]), int(at[n + 1])))
        for n, v in enumerate((query, key, value))
    )


@contributed(
    "GroupQueryAttention",
    *("num_heads", "kv_num_heads", "scale", "softcap", "causal", "local_window_size", "smooth_softmax"),
    *("do_rotary", "rotary_interleaved", "q_norm_epsilon", "k_norm_epsilon", "qk_norm_epsilon"),
    "kv_cache_bit_width",
    sliding_window_cache=0,
    qk_output=0,
    k_quant_type="NONE",
    v_quant_type="NONE",
)
def group_query_attention(
    op: Operator,
    query: Value,
    key: Value,
    value: Value,
    past_key: Value,
    past_value: Value,
    seqlens_k: Value,
    total_sequence_length: Value,
    cos_cache: Value = None,
    sin_cache: Value = None,
    position_ids: Value = None,
    attention_bias: Value = None,
    head_sink: Value = None,
    k_scale: Value = None,
    v_scale: Value = None,
    q_norm_weight: Value = None,
    k_norm_weight: Value = None,
    query_seqlens: Value = None,
) -> Any:
    """Groups of query heads share a head of keys and values, which is not repeated.

    ``seqlens_k`` has the number of tokens of each sequence, less 1. The new tokens are the last ones of
    them (all, in a first step); their rows of the cache are written, and what is beyond does not count.
    """
    refuse_inputs(op, k_scale=k_scale, v_scale=v_scale, query_seqlens=query_seqlens)
    refuse_outputs(op, output_qk=3)
    heads, groups = int(op.attr("num_heads")), int(op.attr("kv_num_heads"))
    if groups < 1 or heads % groups:
        raise ModelError(f"its {heads} heads are no multiple of {groups} heads of keys")
    if (key is None) != (value is None) or (past_key is None) != (past_value is None):
        raise ModelError("it must have both keys and values, or none, and so with the past ones")
    batch, length, width = _rank(query, "query", 3)
    if key is None:
        size = _head_size(width, heads + 2 * groups)
        ends = [heads * size, (heads + groups) * size, width]
        query, key, value = (_part(op, query, 2, b, e) for b, e in zip([0, *ends], ends, strict=False))
    size = _head_size(shape_of(query)[2], heads)
    for name, given in (("key", key), ("value", value)):
        _expect(given, name, (batch, length, groups * size))
    _expect(seqlens_k, "seqlens_k", (batch,), (batch, 1))
    query, key, value = (
        _split_heads(op, v, n) for v, n in ((query, heads), (key, groups), (value, groups))
    )
    if (q_norm_weight is None) != (k_norm_weight is None):
        raise ModelError("it must have both of 'q_norm_weight' and 'k_norm_weight' or none")
    if q_norm_weight is not None:
        both = op.attr("qk_norm_epsilon", 1e-6)
        query = op("RMSNormalization", query, q_norm_weight, epsilon=op.attr("q_norm_epsilon", both))
        key = op("RMSNormalization", key, k_norm_weight, epsilon=op.attr("k_norm_epsilon", both))

    keys = int(scalar(total_sequence_length))
    before = 0 if past_key is None else _rank(past_key, "past_key", 4)[2]
    for name, given in (("past_key", past_key), ("past_value", past_value)):
        _expect(given, name, (batch, groups, before, size))
    if keys < length or (keys > before and keys != before + length):
        raise ModelError(
            f"its 'total_sequence_length' is {keys}; with a cache of {before} and {length} new tokens it"
            f" must be {before + length}, or be from {length} to {before}"
        )
    if length not in (1, keys) and batch > 1:
        raise ModelError(
            f"it adds {length} tokens to caches of {batch} sequences, whose lengths may differ"
        )
    room = max(keys, before)
    last = op("Reshape", op("Cast", seqlens_k, to=TensorProto.INT64), _sizes(batch, 1))
    starts = op("Max", op("Add", last, _sizes(1 - length)), _sizes(0))
    starts = checked(op, starts, room - length + 1, first=0)
    places = op("Add", starts, counted(op, length, "int32"))
    if op.attr("do_rotary", 0):
        if cos_cache is None or sin_cache is None:
            raise ModelError("with 'do_rotary' it must have 'cos_cache' and 'sin_cache'")
        turns = places
        if position_ids is not None:
            _expect(position_ids, "position_ids", (batch, length))
            turns = position_ids
            if keys == length:  # onnxruntime counts on from the first one
                first = op("Slice", turns, _sizes(0, 0), _sizes(1, 1))
                turns = op("Expand", op("Add", first, counted(op, length)), _sizes(batch, length))
        rotation = _rotation(op, cos_cache, sin_cache, turns)
        cos, sin = (op("Unsqueeze", v, _sizes(1)) for v in rotation)
        interleaved = bool(op.attr("rotary_interleaved", 0))
        query, key = (_rotated(op, v, cos, sin, interleaved) for v in (query, key))
    key, value = (
        _written(op, past, new, starts, room) for past, new in ((past_key, key), (past_value, value))
    )

    grouped = _sizes(batch, groups, heads // groups * length, size)
    scores = _scores(op, op("Reshape", query, grouped), _part(op, key, 2, 0, keys))
    scores = op("Reshape", scores, _sizes(batch, heads, length, keys))
    if cap := op.attr("softcap", 0.0):
        scores = op("Mul", op("Tanh", op("Div", scores, np.float32(cap))), np.float32(cap))
    if attention_bias is not None:
        scores = op("Add", scores, _attention_bias(attention_bias, batch, heads, length, keys))
    scores = op("Where", op("Unsqueeze", _visible(op, places, last, keys), _sizes(1)), scores, _LEAST)
    shares = _softmax(op, scores, head_sink)
    shares = op("Reshape", shares, _sizes(batch, groups, heads // groups * length, keys))
    found = op("MatMul", shares, _part(op, value, 2, 0, keys))
    found = _join_heads(op, op("Reshape", found, _sizes(batch, heads, length, size)))
    return (found, key, value)[: max(1, op.outputs)]


def _written(op: Operator, past: Value, new: Value, starts: Value, room: Size) -> Any:
    """A cache with room for that many rows: those of the past one, and from ``starts`` on the new ones."""
    batch, heads, rows, size = shape_of(new)
    if rows == room:
        return new
    before = shape_of(past)[2]

    def compute(old: te.Tensor, fresh: te.Tensor, start: te.Tensor) -> te.Tensor:
        def one(b: Any, h: Any, t: Any, c: Any) -> Any:
            at = t - start(b, 0).astype(t.ty.dtype)
            kept = old(b, h, t, c)
            if before < room:
                blank = tirx.const(0, dtype_of(new))
                kept = tirx.if_then_else(t < before, old(b, h, te.min(t, before - 1), c), blank)
            row = te.max(te.min(at, rows - 1), 0)
            return tirx.if_then_else(tirx.all(at >= 0, at < rows), fresh(b, h, row, c), kept)

        return te.compute((batch, heads, room, size), one, name="cache")

    return op.te(compute, past, new, starts)


def _visible(op: Operator, places: Value, last: Value, keys: Size) -> Any:
    """Which keys each query attends to, ``[batch, queries, keys]``: those up to its own place, or to the
    last one."""
    at = counted(op, keys, "int32")
    window = int(op.attr("local_window_size", -1))
    if not op.attr("causal", 1):
        if window > 0:
            raise op.unsupported("with a 'local_window_size' that is not causal is not implemented")
        return op("LessOrEqual", at, op("Unsqueeze", op("Cast", last, to=TensorProto.INT32), _sizes(2)))
    place = op("Unsqueeze", places, _sizes(2))
    visible = op("LessOrEqual", at, place)
    if window > 0:
        visible = op("And", visible, op("Greater", at, op("Sub", place, np.int32(window))))
    return visible


def _softmax(op: Operator, scores: Value, sink: Value) -> Any:
    """The softmax of scores. A sink is one more score, of each head, that takes a share of no key; with
    ``smooth_softmax`` it is 0."""
    batch, heads, queries, keys = shape_of(scores)
    _expect(sink, "head_sink", (heads,))
    if sink is None:
        if op.attr("smooth_softmax", -1) != 1:
            return op("Softmax", scores, axis=-1)
        sink = np.zeros(heads, np.float32)
    column = op("Reshape", sink, _sizes(1, heads, 1, 1))
    column = op("Expand", column, _sizes(batch, heads, queries, 1))
    return _part(op, op("Softmax", op("Concat", scores, column, axis=-1), axis=-1), 3, 0, keys)


@contributed(
    "RotaryEmbedding",
    *("num_heads", "rotary_embedding_dim", "interleaved"),
    scale=1.0,
    is_packed_batching=0,
)
def rotary_embedding(
    op: Operator, data: Value, position_ids: Value, cos_cache: Value, sin_cache: Value
) -> Any:
    """Rotate the first elements of each head; heads are an axis of their own, or parts of the last one."""
    shape, split = _rank(data, "input", 3, 4), len(shape_of(data)) == 4
    batch, length = (shape[0], shape[2]) if split else shape[:2]
    turned, angles = int(op.attr("rotary_embedding_dim", 0)), _rank(cos_cache, "cos_cache", 2)[1]
    if not split:
        heads = int(op.attr("num_heads", 0))
        if turned and not heads:
            raise ModelError("with 'rotary_embedding_dim' it must have 'num_heads'")
        heads = heads or shape[2] // (2 * angles)
        data = op("Reshape", data, _sizes(batch, length, heads, _head_size(shape[2], heads)))
    if 2 * angles != (turned or shape_of(data)[3]):
        raise ModelError(
            f"its 'cos_cache' has {angles} angles; it rotates {turned or shape_of(data)[3]} elements"
        )
    _expect(position_ids, "position_ids", (1,), (batch, length))
    if shape_of(position_ids) == (1,):
        position_ids = op("Unsqueeze", op("Add", position_ids, counted(op, length)), _sizes(0))
    rotation = _rotation(op, cos_cache, sin_cache, position_ids)
    cos, sin = (op("Unsqueeze", v, _sizes(1 if split else 2)) for v in rotation)
    found = _rotated(op, data, cos, sin, bool(op.attr("interleaved", 0)))
    return found if split else op("Reshape", found, _sizes(*shape))


def _rotation(op: Operator, cos: Value, sin: Value, positions: Value) -> list[Value]:
    """The cosines and sines of positions; those must be in the caches."""
    rows, angles = _rank(cos, "cos_cache", 2)
    _expect(sin, "sin_cache", (rows, angles))
    positions = checked(op, positions, rows, first=0)
    return [take(op, table, positions) for table in (cos, sin)]


def _rotated(op: Operator, data: Value, cos: Value, sin: Value, interleaved: bool) -> Any:
    """Rotate pairs of elements of the last axis, two halves or neighbours; the rest of the axis is kept."""
    angles, (*outer, size) = shape_of(cos)[-1], shape_of(data)
    if 2 * angles > size:
        raise ModelError(f"its caches have {angles} angles; heads of {size} have at most {size // 2} pairs")
    if interleaved:
        pairs = op("Reshape", _part(op, data, -1, 0, 2 * angles), _sizes(*outer, angles, 2))
        real, imaginary = (op("Gather", pairs, np.array(n), axis=-1) for n in (0, 1))
    else:
        real, imaginary = (_part(op, data, -1, n * angles, (n + 1) * angles) for n in (0, 1))
    turned = [
        op("Sub", op("Mul", real, cos), op("Mul", imaginary, sin)),
        op("Add", op("Mul", imaginary, cos), op("Mul", real, sin)),
    ]
    if interleaved:
        stacked = op("Concat", *(op("Unsqueeze", v, _sizes(-1)) for v in turned), axis=-1)
        turned = [op("Reshape", stacked, _sizes(*outer, 2 * angles))]
    rest = [] if 2 * angles == size else [_part(op, data, -1, 2 * angles, size)]
    return op("Concat", *turned, *rest, axis=-1)
