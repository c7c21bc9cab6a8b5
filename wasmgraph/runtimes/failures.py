"""Errors for nonzero results of a graph's entry function; docs/abi.md lists the codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wasmgraph.abi import FIRST_CHECK
from wasmgraph.artifact import Check
from wasmgraph.errors import ExecutionError, IndexRangeError, WasmgraphError


def failure(
    where: str, function: str, result: int, checks: Sequence[Check], code_at: Callable[[int], int]
) -> WasmgraphError:
    """Return the error for a nonzero ``result``; ``code_at`` reads the int64 at a check's offset."""
    if not FIRST_CHECK <= result < FIRST_CHECK + len(checks):
        return ExecutionError(f"{where}: {function} returned {result}.")
    check = checks[result - FIRST_CHECK]
    return IndexRangeError(
        f"{where}: the index {check.index(code_at(check.offset))} is out of range at {check.node}"
        f" ({check.operator}); it must be from {check.low} to {check.high}. Look at the inputs that it is"
        " computed from."
    )
