"""Reading ``results/conformance.json``: outcomes of ONNX's own backend tests, by target and by operator."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wasmgraph.errors import RecordError

OUTCOMES = ("passed", "folded", "refused", "wrong", "crashed", "skipped")
NETWORKS = "(networks)"  # cases of several operators


@dataclass(frozen=True)
class OperatorCases:
    """The cases of one operator: by target, how many had each outcome; and the reasons of refusals."""

    operator: str
    outcomes: Mapping[str, Counter[str]]
    reasons: Sequence[str]

    @property
    def cases(self) -> int:
        """How many there are."""
        return next(iter(self.outcomes.values())).total()


@dataclass(frozen=True)
class Conformance:
    """A whole run. ``counted`` has the node tests whose inputs and outputs are tensors of ``dtypes``."""

    onnx: str
    dtypes: Sequence[str]
    targets: Sequence[str]
    counted: Mapping[str, Counter[str]]
    everything: Mapping[str, Counter[str]]
    operators: Sequence[OperatorCases]

    def share(self, target: str) -> float:
        """Passed of those that count."""
        return self.counted[target]["passed"] / max(1, self.counted[target].total())


def read_conformance(path: str | Path) -> Conformance:
    """Read a file that ``make conformance`` wrote.

    Raises
    ------
    RecordError
        It cannot be read, or is something else.
    """
    try:
        content = json.loads(Path(path).read_text())
        cases: Mapping[str, Mapping[str, Any]] = content["cases"]
        targets = list(content["summary"])
        node = {n: c for n, c in cases.items() if n.startswith("Node/") and c["counts"]}
        return Conformance(
            content["onnx"],
            content["dtypes"],
            targets,
            {t: Counter(case[t][0] for case in node.values()) for t in targets},
            {t: Counter(case[t][0] for case in cases.values()) for t in targets},
            _operators(node, targets),
        )
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise RecordError(f"{path} is no record of conformance: {error!r}; `make conformance`.") from error


def _operators(cases: Mapping[str, Mapping[str, Any]], targets: Sequence[str]) -> list[OperatorCases]:
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for case in cases.values():
        grouped.setdefault(case["operator"], []).append(case)
    return [
        OperatorCases(
            operator,
            {t: Counter(case[t][0] for case in found) for t in targets},
            sorted({_reason(case[t][1]) for case in found for t in targets if case[t][0] == "refused"}),
        )
        for operator, found in sorted(grouped.items(), key=lambda item: (item[0] == NETWORKS, item[0]))
    ]


def _reason(text: str) -> str:
    """A refusal's reason, without the name of the case."""
    _, found, rest = text.partition("): ")
    rest = rest if found else text
    return rest.partition(" at (makes")[0].removesuffix(".")
