"""Revisions as directories: a git worktree each, with the Python that runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wasmgraph.errors import MissingDependencyError, UsageError

Progress = Callable[[str], None]
_PREFIX = "wasmgraph-revision-"


@dataclass(frozen=True)
class Checkout:
    """A revision's files, an interpreter with their dependencies, and the commit."""

    root: Path
    python: str
    commit: str


def repository() -> Path:
    """The root of the git repository that the current directory is in.

    Raises
    ------
    UsageError
        The directory is in no repository, or in another project's.
    """
    root = Path(_git(Path.cwd(), "rev-parse", "--show-toplevel"))
    if not (root / "wasmgraph" / "__init__.py").exists():
        raise UsageError(f"{root} is not a checkout of wasmgraph: revisions of wasmgraph are compared.")
    return root


@contextmanager
def checkout(root: Path, revision: str, progress: Progress) -> Iterator[Checkout]:
    """Check a revision out into a temporary worktree, removed at the end.

    A revision that depends on other packages than this environment has gets an environment of its own
    (`make`, minutes).

    Raises
    ------
    UsageError
        There is no such revision, or it cannot be set up.
    """
    _remove_stale(root)
    commit = _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", of=revision)
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as directory:
        place = Path(directory) / "wasmgraph"
        _git(root, "worktree", "add", "--detach", "--quiet", str(place), commit)
        try:
            yield Checkout(place, _python(root, place, progress), commit)
        finally:
            _git(root, "worktree", "remove", "--force", str(place))


def _remove_stale(root: Path) -> None:
    """Remove wasmgraph's worktrees whose processes no longer exist: a killed process cannot remove its
    own."""
    listed = _git(root, "worktree", "list", "--porcelain").splitlines()
    for place in (Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")):
        pid = place.parent.name.removeprefix(_PREFIX).partition("-")[0]
        if place.parent.name.startswith(_PREFIX) and pid.isdecimal() and not _is_alive(int(pid)):
            shutil.rmtree(place.parent, ignore_errors=True)
    _git(root, "worktree", "prune")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _git(root: Path, *command: str, of: str = "") -> str:
    try:
        done = subprocess.run(
            ["git", *command],  # noqa: S607
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise MissingDependencyError(f"comparing revisions needs git: {error.strerror}.") from error
    if done.returncode:
        why = done.stderr.strip() or f"there is no revision {of!r}; `git log` lists those there are"
        raise UsageError(f"git {command[0]}: {why}.")
    return done.stdout.strip()


def _python(root: Path, place: Path, progress: Progress) -> str:
    if _dependencies(root) == _dependencies(place):
        return sys.executable
    progress(f"{place.name}: other dependencies than here, setting up an environment")
    command = ["make", ".venv/.ready"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"`make .venv/.ready` failed in the revision: {_last_line(done.stderr)}")
    return str(place / ".venv" / "bin" / "python")


def _dependencies(root: Path) -> Sequence[Any]:
    """The files that define a revision's environment."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    constraints = root / "constraints.txt"
    extras = project.get("optional-dependencies", {})
    needed = {name: extras.get(name) for name in ("compile", "onnxruntime")}
    return [project["dependencies"], needed, _pins(constraints)]


def _pins(constraints: Path) -> set[str]:
    if not constraints.exists():
        return set()
    wanted = ("apache-tvm", "onnx", "numpy", "wasmtime", "ziglang")
    return {line for line in constraints.read_text().splitlines() if line.startswith(wanted)}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
