"""The process that runs cases of ONNX's backend tests for one target. It is started with the target's name,
reads lines of ``category name`` and answers each with a line of JSON: ``outcome`` and ``reason``.

A case may kill the process; the parent then starts another.
"""

from __future__ import annotations

import json
import sys
import unittest
import warnings
from contextlib import redirect_stdout
from typing import Any

import onnx
from onnx.backend.test import BackendTest

from wasmgraph.errors import InternalError, WasmgraphError
from wasmgraph.onnx_backend import PreparedModel, WasmgraphBackend
from wasmgraph.processes import encode, serve_on_standard_streams

_prepared: list[PreparedModel] = []
_target = ""


class TargetBackend(WasmgraphBackend):
    """The backend that the tests use: their device ``CPU`` means the target, and the model that they
    prepared last is kept.
    """

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> bool:
        return True  # prepare or run refuses other models, with a reason

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> PreparedModel:
        prepared = super().prepare(model, _target, **kwargs)
        _prepared.append(prepared)
        return prepared

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device == "CPU" or (super().supports_device(device) and device == _target)


class Outcome(unittest.TestResult):
    """The outcome of a case: the exception that ended it, if any."""

    raised: BaseException | None = None

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        self.raised = err[1]

    addFailure = addError  # noqa: N815

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        self.raised = unittest.SkipTest(reason)


def run(cases: dict[str, type[unittest.TestCase]], category: str, name: str) -> dict[str, str]:
    """Run one case: ``passed``, ``folded``, ``refused``, ``wrong``, ``crashed`` or ``skipped``, and why."""
    outcome = Outcome()
    cases[f"OnnxBackend{category}ModelTest"](name).run(outcome)
    error = outcome.raised
    folded = bool(_prepared) and all(
        set(p.constant_outputs) == {v.name for v in p.model.graph.output} for p in _prepared
    )
    while _prepared:
        _prepared.pop().close()
    if error is None:
        return {"outcome": "folded" if folded else "passed"}
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, WasmgraphError) and not isinstance(error, InternalError):
        return {"outcome": "refused", "reason": reason}
    if isinstance(error, AssertionError):
        return {"outcome": "wrong", "reason": reason}
    if isinstance(error, unittest.SkipTest):
        return {"outcome": "skipped", "reason": reason}
    return {"outcome": "crashed", "reason": f"{type(error).__name__}: {reason}"}


def main() -> None:
    """Serve until standard input ends."""
    global _target
    _target = sys.argv[1]
    questions, answers = serve_on_standard_streams()
    warnings.simplefilter("ignore")
    with redirect_stdout(sys.stderr):
        cases = BackendTest(TargetBackend, __name__).test_cases
        for line in questions:
            answers.write(encode(run(cases, **json.loads(line))))


if __name__ == "__main__":
    main()
