"""The child that compiles an untrusted model: limits itself, compiles, says how it goes in lines."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wasmgraph.compiler import CompileLog
from wasmgraph.compiler import compile as compile_model
from wasmgraph.compiler.untrusted.parent import RESULT
from wasmgraph.errors import LimitError, WasmgraphError, error_to
from wasmgraph.limits import end_with_parent, restrict_memory
from wasmgraph.processes import encode, serve_on_standard_streams

Say = Callable[[dict[str, Any]], None]


def _compile(request: dict[str, Any], say: Say) -> dict[str, Any]:
    log = CompileLog(observer=lambda stage: say(asdict(stage)))
    artifact = compile_model(
        request["model"],
        log=log,
        **{name: request[name] for name in ("target", "shapes", "params", "keep", "winograd", "command")},
    )
    artifact.save(Path(request["place"]) / RESULT)
    done = {"rules": dict(log.rules), "fallbacks": log.fallbacks, "slow": log.slow}
    done |= {"constant_outputs": list(log.constant_outputs), "notes": list(log.notes)}
    return {"done": done}


def main() -> None:
    """Compile what standard input asks for."""
    questions, answers = serve_on_standard_streams()
    end_with_parent(group=True)
    request = json.loads(questions.readline())

    def say(message: dict[str, Any]) -> None:
        answers.write(encode(message))

    restrict_memory(int(request["memory_bytes"]))
    seconds = math.ceil(request["cpu_s"])  # of this process, and of each that it starts
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    try:
        say(_compile(request, say))
    except WasmgraphError as error:
        say(error_to(error))
    except MemoryError:
        allowed = f"{request['memory_bytes']:,} bytes"
        needed = LimitError(f"{request['model']} needs more memory than {allowed} to compile.")
        say(error_to(needed))


if __name__ == "__main__":
    main()
