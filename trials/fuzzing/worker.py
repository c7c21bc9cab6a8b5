"""Runs the cases that it receives as lines of JSON, in a process of its own: a case that kills it must not
end the whole run."""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path

from wasmgraph.errors import WasmgraphError
from wasmgraph.processes import encode, serve_on_standard_streams


def main() -> None:
    case = import_module(f"trials.fuzzing.{sys.argv[1]}").case
    questions, answers = serve_on_standard_streams()
    with tempfile.TemporaryDirectory() as place:
        for line in questions:
            seed = json.loads(line)["seed"]
            find = None
            try:
                outcome = case(seed, Path(place))
            except WasmgraphError as error:
                outcome, find = f"unexpected: {type(error).__name__}", str(error)
            except Exception as error:
                outcome, find = f"untyped: {type(error).__name__}", traceback.format_exc(limit=-4)
            answers.write(encode({"outcome": outcome, "find": find}))


if __name__ == "__main__":
    main()
