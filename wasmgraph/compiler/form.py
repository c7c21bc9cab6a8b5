"""What form a graph is linked in."""

from __future__ import annotations

from dataclasses import dataclass

from wasmgraph.manifest import Params


@dataclass(frozen=True)
class Form:
    """What is linked: where a module's parameters are, and whether it is a WASI command."""

    params: Params = "embedded"
    command: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """For the C compiler."""
        return ("-DWASI_PARAMS",) if self.params == "wasi" else ()
