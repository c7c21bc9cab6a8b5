"""Adverse conditions: full disks, read-only caches, clocks that jump, little memory, several processes at
once. Each function raises AssertionError, or returns a description of what it observed.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from wasmgraph.artifact import PARAMS_FOLDER, Artifact

ROOT = Path(__file__).parent.parent.parent
_YEAR_2100, _YEAR_1971 = 4_102_444_800, 31_536_000


class UnavailableError(Exception):
    """A condition that cannot be produced on this machine or by this user."""


def cli(
    *words: object, cache: Path, before: Callable[[], None] | None = None, place: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run the command line with a cache of its own."""
    environment = {**os.environ, "WASMGRAPH_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "wasmgraph", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=place,
        check=False,
        preexec_fn=before,
        timeout=300,
    )


def _clear(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Assert that the command ended with this exit code and a message with these words, and no
    traceback."""
    said = done.stdout + done.stderr
    assert done.returncode == code, f"ended with {done.returncode}, not {code}: {said[-600:]}"
    assert "Traceback" not in said, said[-600:]
    for word in words:
        assert word in said, f"does not say {word!r}: {said[-600:]}"


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A file system of a few megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise UnavailableError(f"a small file system cannot be mounted: {error}") from error
        if done.returncode:
            raise UnavailableError(f"a small file system cannot be mounted: {done.stderr.strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run([shutil.which("umount") or "umount", folder], check=True)


def full_disk(model: Path, results: Path, place: Path) -> str:
    """Writing to a full disk fails with an error, existing files are kept, no partial file remains."""
    cache = place / "cache"
    wasm = place / "whole.wasm"
    _clear(cli("compile", model, "-o", wasm, cache=cache), 0)
    with Artifact.open(wasm).path.open("rb") as stream:
        size = len(stream.read())
    inputs = Artifact.open(wasm).inputs
    feeds = []
    for spec in inputs:
        np.save(place / f"{spec.name}.npy", np.zeros(spec.shape, spec.dtype))
        feeds += ["--input", f"{spec.name}={place / spec.name}.npy"]
    with small_disk(1 + size // (1 << 20)) as disk:
        (disk / "out.wasm").write_bytes(b"kept")
        (disk / "history.jsonl").write_bytes(b"")
        rest = shutil.disk_usage(disk).free
        (disk / "ballast").write_bytes(bytes(rest))
        before = sorted(path.name for path in disk.iterdir())
        full = "No space left on device"
        _clear(cli("compile", model, "-o", disk / "out.wasm", cache=cache), 2, "out.wasm", full)
        _clear(cli("run", wasm, *feeds, "--output", disk / "o.npz", cache=cache), 2, "o.npz", full)
        added = cli("history", "add", results, "--file", disk / "history.jsonl", cache=cache)
        _clear(added, 2, "history.jsonl", full)
        _clear(cli("report", results, "-o", disk / "reports", cache=cache), 2, full)
        _clear(cli("fetch", "light_squeezenet", cache=disk / "cache"), 2, full)
        # A cache without space only costs time.
        _clear(cli("run", wasm, *feeds, "--output", place / "o.npz", cache=disk / "cache"), 0)
        assert (disk / "out.wasm").read_bytes() == b"kept"
        assert (disk / "history.jsonl").read_bytes() == b""
        made = {path.name for path in disk.iterdir()} - set(before)
        assert made <= {"cache", "reports", "history.jsonl.lock"}, f"left over: {made}"
        assert not list(disk.rglob("*.part"))
    return "six commands on a full disk"


def read_only_cache(model: Path, place: Path) -> str:
    """If the cache cannot be created, commands that need it fail with an error, and all others work."""
    (place / "file").write_text("no directory")
    cache = place / "file" / "cache"
    wasm = place / "m.wasm"
    _clear(cli("fetch", "light_squeezenet", cache=cache), 2, "cannot be written", "WASMGRAPH_CACHE")
    _clear(cli("compile", model, "-o", wasm, cache=cache), 0)
    _clear(cli("inspect", wasm, cache=cache), 0)
    return "fetch refuses, compile and inspect work"


def jumping_clock(model: Path, place: Path) -> str:
    """Files from 1971 and 2100 can be read; an altered file is noticed even if its time did not change."""
    cache, wasm = place / "cache", place / "m.wasm"
    _clear(cli("compile", model, "-o", wasm, cache=cache), 0)
    for year in (_YEAR_2100, _YEAR_1971):
        for path in (wasm, *(p for p in cache.rglob("*") if p.is_file())):
            os.utime(path, (year, year))
        _clear(cli("inspect", wasm, cache=cache), 0)
    content = bytearray(wasm.read_bytes())
    content[len(content) // 2] ^= 1
    wasm.write_bytes(content)
    os.utime(wasm, (_YEAR_1971, _YEAR_1971))
    _clear(cli("inspect", wasm, cache=cache), 2, "altered")
    return "files of 1971 and 2100, and one that was altered"


def little_memory(model: Path, place: Path) -> str:
    """A compile without enough memory ends with an error message, and leaves no partial file."""
    out, cache = place / "o.wasm", place / "cache"
    _clear(cli("compile", model, "-o", out, "--untrusted", "--limit-memory", 200, cache=cache), 3, "memory")
    found = []
    for megabytes in (150, 250, 350, 450):
        limit = megabytes << 20
        done = cli(
            *("compile", model, "-o", out),
            cache=cache,
            before=lambda limit=limit: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),  # type: ignore[misc]
        )
        assert "Traceback" not in done.stderr or "wasmgraph" not in done.stderr, done.stderr[-800:]
        assert done.returncode != 0 or out.exists()
        found.append(done.returncode)
        out.unlink(missing_ok=True)
        assert not list(place.glob(".o.wasm*"))
    return f"with 150 to 450 MB of memory ended with {found}"


def crowd(model: Path, place: Path, how_many: int = 4) -> str:
    """Several processes compile to one file, fetch one model and fill one cache: all succeed and agree."""
    cache, out = place / "cache", place / "out.wasm"
    environment = {**os.environ, "WASMGRAPH_CACHE": str(cache), "PYTHONPATH": str(ROOT)}

    def together(words: list[str]) -> None:
        processes = [
            subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for _ in range(how_many)
        ]
        for process in processes:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said.decode()[-600:]

    together(["-m", "wasmgraph", "compile", str(model), "-o", str(out), "--params", "wasi"])
    together(["-m", "wasmgraph", "fetch", "light_squeezenet"])
    load = "import sys, wasmgraph as wg; wg.load(sys.argv[1]).close(); wg.load(sys.argv[1]).close()"
    together(["-c", load, str(out)])
    Artifact.open(out)
    (params,) = (place / PARAMS_FOLDER).iterdir()
    assert params.name == Artifact.open(out).manifest.params_file
    assert len(list((cache / "compiled").glob("*.cwasm"))) == 1
    assert not list(place.rglob("*.part"))
    return f"{how_many} processes at once, three commands"
