"""Does the cases that it is told, a line of JSON each: what kills it must not end the run."""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path

from wasmgraph.errors import WasmgraphError


def main() -> None:
    case = import_module(f"trials.fuzzing.{sys.argv[1]}").case
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever else prints must not come between answers
    with tempfile.TemporaryDirectory() as place:
        for line in sys.stdin:
            seed = int(line)
            find = None
            try:
                outcome = case(seed, Path(place))
            except WasmgraphError as error:
                outcome, find = f"unexpected: {type(error).__name__}", str(error)
            except Exception as error:
                outcome, find = f"untyped: {type(error).__name__}", traceback.format_exc(limit=-4)
            answers.write(json.dumps([seed, outcome, find]) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
