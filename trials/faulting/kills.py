"""Kills (SIGKILL) or interrupts (SIGINT) commands at any moment. Afterwards the output must be complete or
absent, the cache must hold only complete files, and running the command again must succeed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

import wasmgraph
from wasmgraph.analysis.history import read_history
from wasmgraph.errors import RecordError
from wasmgraph.records import read_results

_PACKAGE = Path(wasmgraph.__file__).parent
ROOT = Path(__file__).parent.parent.parent
_PATIENCE_S = 180.0
_POLL_S = 2e-4
# Suffixes of files that are being written: a file that will be renamed, a package that is being downloaded.
_UNFINISHED = (".part",)
_FETCHING = ".fetch-"


@dataclass(frozen=True)
class Scene:
    """A command, its cache, its working folder, and checks of them.

    ``writing`` tells whether the command is writing at this moment. ``check`` raises AssertionError if the
    state after a run is wrong; its argument tells whether the run finished.
    """

    name: str
    command: tuple[str, ...]
    place: Path
    cache: Path
    writing: Callable[[], bool]
    check: Callable[[bool], None]

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command in a session of its own."""
        environment = {**os.environ, "WASMGRAPH_CACHE": str(self.cache)}
        return subprocess.Popen(
            [sys.executable, *self.command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )


@dataclass(frozen=True)
class Blow:
    """The result of one disturbed run: whether it was writing, how it ended, what was wrong afterwards."""

    writing: bool
    status: int
    find: str | None


def _unfinished(*folders: Path) -> bool:
    """Whether a file is being written in one of the folders."""
    for folder in folders:
        with suppress(OSError):
            for entry in os.scandir(folder):
                if entry.name.endswith(_UNFINISHED) or entry.name.startswith(_FETCHING):
                    return True
    return False


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_cache(cache: Path, sound: dict[str, str]) -> None:
    """Assert that cache files with a final name equal those of an undisturbed run."""
    for path in cache.rglob("*"):
        relative = str(path.relative_to(cache))
        hidden = any(part.startswith(".") for part in path.relative_to(cache).parts)
        if not path.is_file() or hidden or path.suffix == ".lock":
            continue
        if relative.startswith("digests/"):
            json.loads(path.read_text())
        elif relative in sound:
            assert _digest(path) == sound[relative], f"{relative} is corrupted"


def _sound(cache: Path) -> dict[str, str]:
    files = [p for p in cache.rglob("*") if p.is_file() and p.suffix not in (".lock", ".part")]
    named = {str(p.relative_to(cache)): p for p in files}
    return {name: _digest(p) for name, p in named.items() if not name.startswith("digests/")}


def compiling(place: Path, model: Path) -> Scene:
    """``wasmgraph compile`` of a model with a parameter file."""
    out, folder = place / "out.wasm", place / "wasmgraph-params"
    whole: dict[Path, str] = {}

    def check(finished: bool) -> None:
        made = [p for p in (out, *folder.glob("[!.]*")) if p.exists()]
        assert not finished or len(made) == 2, "the output is missing"
        assert len(made) < 2 or out in made
        for path in made:
            assert whole.setdefault(path, _digest(path)) == _digest(path), f"{path.name} is not whole"
        assert not out.exists() or len(made) == 2, "a module without its parameters"
        if not finished:
            _clear(place)

    command = ("-m", "wasmgraph", "compile", str(model), "-o", str(out), "--params", "wasi")
    return Scene("compile", command, place, place / "cache", lambda: _unfinished(place, folder), check)


def fetching(place: Path, name: str, packages: Path | None) -> Scene:
    """``wasmgraph fetch``; ``packages`` is a folder of packages that need no download."""
    cache = place / "cache"
    sound: dict[str, str] = {}

    def fill() -> None:
        if packages is not None:
            shutil.copytree(packages, cache / "packages", copy_function=os.link, dirs_exist_ok=True)
            for folder in (cache, cache / "packages"):
                folder.chmod(0o700)

    def check(finished: bool) -> None:
        if finished:
            sound.update(_sound(cache))
            assert any(name.startswith("models/") for name in sound), "no model was fetched"
        _check_cache(cache, sound)
        if not finished:
            _clear(cache)
            fill()

    cache.mkdir(parents=True)
    fill()
    command = ("-m", "wasmgraph", "fetch", name)
    folders = (cache / "models", cache / "packages")
    return Scene("fetch", command, place, cache, lambda: _unfinished(*folders), check)


def remembering(place: Path, results: Path) -> Scene:
    """``wasmgraph history add`` of a large run to a file that grows."""
    history, length, torn = place / "history.jsonl", [0], [0]
    total = len({b["param"] for b in read_results(results)["benchmarks"]})

    def writing() -> bool:
        with suppress(OSError):
            return history.stat().st_size > length[0]
        return False

    def check(finished: bool) -> None:
        if history.exists():
            read = read_history(history, ("ratio",))
            assert not (finished and read.lines == 0), "nothing was added"
            for trend in read.trends:
                assert len(trend.points) <= 1, "a run was read twice"
            length[0] = history.stat().st_size
            torn[0] += read.torn
        if finished or (history.exists() and read.lines == total):
            history.unlink()
            length[0] = 0

    command = ("-m", "wasmgraph", "history", "add", str(results), "--file", str(history))
    return Scene("history add", command, place, place / "cache", writing, check)


def benching(place: Path, model: Path, before: Path) -> Scene:
    """``pytest bench``, with existing results that it replaces."""
    out, cache = place / "results.json", place / "cache"
    shutil.copy(before, out)

    def check(finished: bool) -> None:
        frame = read_results(out)  # the old results or the new ones, never a part
        assert frame["benchmarks"], "results without a benchmark"
        _check_cache(cache, {})
        for compiled in cache.glob("compiled/*.cwasm"):
            assert compiled.read_bytes()[:4] == b"\x7fELF"
            assert whole.setdefault(compiled.name, _digest(compiled)) == _digest(compiled)
        if not finished and len(list(cache.glob("compiled/*.cwasm"))) > 1:
            _clear(cache)

    whole: dict[str, str] = {}
    backends = "wasm32-simd128@wasmtime,wasm32-simd128@node,onnxruntime"
    options = ("-k", "latency", "--models", str(model), "--backends", backends, "--rounds", "2")
    command = ("-m", "pytest", "bench", "-q", *options, f"--benchmark-json={out}")
    folders = (place, cache / "compiled", cache / "digests")
    return Scene("bench", command, place, cache, lambda: _unfinished(*folders), check)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _left_over(session: int) -> list[str]:
    """Processes that a command started and that are still running."""
    found = []
    for process in psutil.process_iter(["pid", "name", "status"]):
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.info["name"])
    return found


def _gone(session: int, seconds: float = 15.0) -> list[str]:
    """Wait for a session's processes to end; return those that are still running after ``seconds``."""
    until = time.monotonic() + seconds
    while (left := _left_over(session)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def duration(scene: Scene) -> float:
    """Seconds that an undisturbed run takes; it must succeed."""
    began = time.monotonic()
    process = scene.start()
    _, said = process.communicate(timeout=_PATIENCE_S)
    assert process.returncode == 0, f"{scene.name}: {said.decode()[-500:]}"
    scene.check(True)
    return time.monotonic() - began


def strike(
    scene: Scene, rng: random.Random, seconds: float, during_write: bool, how: signal.Signals
) -> Blow:
    """Disturb one run: while it writes, or at any moment of its ``seconds``."""
    process = scene.start()
    moment = time.monotonic() + rng.uniform(0, 1.1 * seconds)
    until = time.monotonic() + _PATIENCE_S
    writing = False
    while process.poll() is None and time.monotonic() < until:
        writing = scene.writing()
        if (during_write and writing) or (not during_write and time.monotonic() >= moment):
            break
        time.sleep(_POLL_S)
    # A terminal sends Ctrl-C to all processes of the foreground job.
    with suppress(ProcessLookupError):
        (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
    try:
        _, said = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Blow(writing, process.returncode, f"did not end within 30 s of {how.name}")
    return Blow(writing, process.returncode, _find(scene, process, how, said.decode(errors="replace")))


def _find(scene: Scene, process: subprocess.Popen[bytes], how: signal.Signals, said: str) -> str | None:
    """Return what is wrong after a disturbed run, or None."""
    if left := _gone(process.pid):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return f"still running: {', '.join(left)}"
    if how == signal.SIGINT and not _obeyed(scene, process.returncode, said):
        return f"ended with {process.returncode}: {said[-300:]}"
    try:
        scene.check(False)
    except (AssertionError, RecordError, ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _obeyed(scene: Scene, status: int, said: str) -> bool:
    """Whether the command ended on Ctrl-C with a short message. Before Python reaches wasmgraph's code, a
    traceback is allowed: one that passes through no file of its package."""
    if status == 0 or (status in (1, -signal.SIGINT) and f"{_PACKAGE}{os.sep}" not in said):
        return True
    return status == 2 if scene.name == "bench" else status == 130 and "Traceback" not in said


def blows(scene: Scene, count: int, seed: int, how: signal.Signals = signal.SIGKILL) -> Iterator[Blow]:
    """Do ``count`` disturbed runs, two of three while the command writes, then an undisturbed one."""
    rng = random.Random(seed)  # noqa: S311
    seconds = duration(scene)
    with suppress(OSError):
        scene.check(False)
    for number in range(count):
        yield strike(scene, rng, seconds, number % 3 != 0, how)
    try:
        duration(scene)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        yield Blow(False, 0, f"afterwards: {error}")


def write_many(results: Path, into: Path, copies: int = 40) -> None:
    """Write a results file with many more series than a run has, so that adding it takes long."""
    data = json.loads(results.read_text())
    data["benchmarks"] = [
        {
            **benchmark,
            "name": benchmark["name"].replace("[", f"[{copy}-", 1),
            "param": f"{copy}-{benchmark['param']}",
            "extra_info": {
                **benchmark["extra_info"],
                "model": f"{copy}-{benchmark['extra_info']['model']}",
            },
        }
        for copy in range(copies)
        for benchmark in data["benchmarks"]
    ]
    into.write_text(json.dumps(data))
