"""The child that compiles an untrusted model: limits itself, compiles, says how it goes in lines."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wasmgraph.compiler import CompileLog
from wasmgraph.compiler import compile as compile_model
from wasmgraph.compiler.untrusted.parent import RESULT
from wasmgraph.errors import LimitError, WasmgraphError, error_to
from wasmgraph.limits import end_with_parent, restrict_memory


class Speaker:
    """Standard output, kept for messages: whatever else is printed goes where nobody reads it."""

    def __init__(self) -> None:
        self._descriptor = os.dup(1)
        os.dup2(2, 1)

    def say(self, message: dict[str, Any]) -> None:
        """Send an object, whole."""
        line = json.dumps(message).encode() + b"\n"
        while line:
            line = line[os.write(self._descriptor, line) :]


def _compile(request: dict[str, Any], speaker: Speaker) -> dict[str, Any]:
    log = CompileLog(observer=lambda stage: speaker.say(asdict(stage)))
    artifact = compile_model(
        request["model"],
        request["target"],
        request["shapes"],
        request["params"],
        request["keep"],
        request["winograd"],
        log,
        request["command"],
    )
    artifact.save(Path(request["place"]) / RESULT)
    rules, outputs = dict(log.rules), list(log.constant_outputs)
    return {"done": {"rules": rules, "fallbacks": log.fallbacks, "constant_outputs": outputs}}


def main() -> None:
    """Compile what standard input asks for."""
    speaker = Speaker()
    end_with_parent(group=True)
    request = json.load(sys.stdin)
    restrict_memory(int(request["memory_bytes"]))
    seconds = math.ceil(request["cpu_s"])  # of this process, and of each that it starts
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    try:
        speaker.say(_compile(request, speaker))
    except WasmgraphError as error:
        speaker.say(error_to(error))
    except MemoryError:
        allowed = f"{request['memory_bytes']:,} bytes"
        needed = LimitError(f"{request['model']} needs more memory than {allowed} to compile.")
        speaker.say(error_to(needed))


if __name__ == "__main__":
    main()
