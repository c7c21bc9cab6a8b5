"""Errors for nonzero results of a graph's entry function; docs/abi.md lists the codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wasmgraph.abi import FIRST_CHECK, FIRST_DIM
from wasmgraph.artifact import Check, PlacedDim
from wasmgraph.errors import ExecutionError, FeedError, IndexRangeError, WasmgraphError


def failure(
    where: str,
    function: str,
    result: int,
    checks: Sequence[Check],
    code_at: Callable[[int], int],
    dims: Sequence[PlacedDim] = (),
) -> WasmgraphError:
    """Return the error for a nonzero ``result``; ``code_at`` reads the int64 at a check's offset."""
    if FIRST_DIM <= result < FIRST_DIM + len(dims):
        dim = dims[result - FIRST_DIM]
        what = "the size that data gives" if dim.computed else "the value of"
        return FeedError(
            f"{where}: {what} {dim.name!r} is not from {dim.least} to {dim.most}. Look at the inputs that"
            " it comes from, or compile the model with another bound."
        )
    if not FIRST_CHECK <= result < FIRST_CHECK + len(checks):
        return ExecutionError(f"{where}: {function} returned {result}.")
    check = checks[result - FIRST_CHECK]
    return IndexRangeError(
        f"{where}: the index {check.index(code_at(check.offset))} is out of range at {check.node}"
        f" ({check.operator}); it must be from {check.low} to {check.high}. Look at the inputs that it is"
        " computed from."
    )
