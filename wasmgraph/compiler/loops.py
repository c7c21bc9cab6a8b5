"""Marks of a loop in ``main``. What lies between its two marks is done once in each turn (iteration).

``main`` is a straight line for all passes over it. A mark is a call of an external function, which they
neither fuse nor move. The first mark takes the initial values of the loop's state and tensors from outside
that the loop reads. It returns them under names of their own, so that nothing in the loop is fused or
identified with what is outside. The second takes the state's next values, and tensors of which each turn
wrote a row; it returns the final state and these tensors. Only the plan knows what a mark means.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from wasmgraph.dims import Size, from_json, to_json

_BEGIN, _END = "wasmgraph.loop_begin", "wasmgraph.loop_end"
ROWS = "wasmgraph_rows"  # the attribute of a kernel that writes one row of its output in each turn


@dataclass(frozen=True)
class Loop:
    """``number`` tells the loops of a graph apart. There are at most ``turns`` turns, None: without end.
    If the loop is ``conditional``, its state's first tensor is a truth value; a turn begins if it holds.
    ``states`` is how many tensors the state has."""

    number: int
    turns: Size | None
    conditional: bool
    states: int

    @property
    def begin(self) -> str:
        """The name of the first mark."""
        return _BEGIN + self._written()

    @property
    def end(self) -> str:
        """The name of the second mark."""
        return _END + self._written()

    def _written(self) -> str:
        turns: Any = None if self.turns is None else to_json(self.turns)
        return json.dumps([self.number, turns, self.conditional, self.states])


def mark_of(name: str) -> tuple[Loop, bool] | None:
    """The loop that an external function marks, and whether it begins there; None for other functions."""
    for start in (_BEGIN, _END):
        if name.startswith(start):
            number, turns, *rest = json.loads(name.removeprefix(start))
            return Loop(number, None if turns is None else from_json(turns), *rest), start == _BEGIN
    return None
