"""Whatever a child process does or meets, an answer belongs to its question, or there is a typed error."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from wasmgraph.errors import ProcessError
from wasmgraph.processes import Child, describe, encode

_ECHO = """
import json, sys, time
from wasmgraph.processes import encode, serve_on_standard_streams
questions, answers = serve_on_standard_streams()
print("printed")
while line := questions.readline():
    message = json.loads(line)
    payload = b""
    while len(payload) < message.get("bytes", 0):
        payload += questions.read(message["bytes"] - len(payload))
    time.sleep(message.get("sleep", 0))
    answers.write(encode({"said": message.get("say"), "bytes": len(payload)}))
    sent = 0
    while sent < len(payload):
        sent += answers.write(payload[sent:])
"""


def child(program: str, **options: int) -> Child:
    return Child([sys.executable, "-c", program], "the child", **options)


@pytest.fixture
def echo() -> Iterator[Child]:
    with child(_ECHO) as started:
        yield started


def test_messages_and_bytes_go_both_ways(echo: Child) -> None:
    large = os.urandom(3 << 20)
    for number, payload in enumerate((b"", b"x", large, b"y")):
        answer, content = echo.ask({"say": number}, payload, seconds=20)
        assert (answer, content) == ({"said": number}, payload)


def test_an_interrupted_exchange_ends_the_child(echo: Child) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        echo.ask({"say": 0}, seconds=20)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            echo.ask({"say": 1, "sleep": 1}, seconds=20)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert echo.closed
    with pytest.raises(ProcessError, match="Load it again"):
        echo.ask({"say": 2}, seconds=20)


def test_a_late_answer_ends_the_child(echo: Child) -> None:
    echo.ask({"say": 0}, seconds=20)
    with pytest.raises(ProcessError, match="gave no answer in time") as raised:
        echo.ask({"say": 1, "sleep": 20}, seconds=0.1)
    assert raised.value.late
    assert raised.value.status is None
    assert echo.closed


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('the last line\\nwas this')", "exit status 1: was this"),
        ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        ("print('nonsense')", "nonsense"),
        ("print('[1]')", "nonsense"),
        ("""print('{"bytes": 2105212928}')""", "2105212928 bytes follow"),
        ("""print('{"bytes": -1}')""", "bytes follow"),
        ("""print('{"bytes": "many"}')""", "bytes follow"),
        ("print('x' * (5 << 20))", "line without an end|nonsense"),
    ],
)
def test_what_a_child_may_do_is_said(program: str, words: str) -> None:
    started = child(program + "\nimport time; time.sleep(5)", longest=100)
    with pytest.raises(ProcessError, match=words):
        started.ask({}, seconds=10)
    assert started.closed


def test_a_child_that_never_reads_does_not_block() -> None:
    began = time.monotonic()
    with child("import time; time.sleep(60)") as started, pytest.raises(ProcessError) as raised:
        started.ask({}, bytes(8 << 20), seconds=0.5)
    assert raised.value.late
    assert time.monotonic() - began < 20


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(ProcessError, match="cannot be started"):
        Child(["/nowhere/at-all"], "the child")


def test_json_has_no_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode({"x": float("nan")})


def test_endings_in_words() -> None:
    assert describe(3) == "ended with the exit status 3"
    assert describe(-9) == "was ended by SIGKILL"
    assert describe(-77) == "was ended by signal 77"
