"""Files that are whole or absent, digests remembered by file identity, and the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import platformdirs
from filelock import FileLock

from wasmgraph.errors import CacheError

_CHUNK = 1 << 22
_RENEW_S = 3600.0
_ABANDONED_S = 24 * 3600.0  # since a partial file was last written
_DIGESTS_BYTES = 1 << 20  # of remembered digests, some 8,000


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; rename it there if the block ends without error.

    Readers see the old file or the whole new one, never a part; on an error nothing is left. A
    symbolic link is followed; what is there and is no regular file (a device, a pipe) is written to.
    """
    path = path.resolve()
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as stream:
            yield stream
        return
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def expand(path: str | Path) -> Path:
    """A path that a user gave: ``~`` is a home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user
        return Path(path)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step."""
    with replacing(path) as stream:
        stream.write(content)


def cache_dir(*parts: str) -> Path:
    """Return a directory of the user's cache, made if absent, writable by this user alone.

    Raises
    ------
    CacheError
        It cannot be made or written, or others could write into it.
    """
    root = Path(os.environ.get("WASMGRAPH_CACHE") or platformdirs.user_cache_path("wasmgraph"))
    path = root.joinpath(*parts)
    levels = [root, *(root.joinpath(*parts[: n + 1]) for n in range(len(parts)))]
    remedy = "set WASMGRAPH_CACHE to a directory that you own"
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        for level in levels:
            level.mkdir(exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise CacheError(f"the cache {path} cannot be written ({error.strerror}): {remedy}.") from error
    if os.name == "posix":
        for level in levels:
            status = level.stat()
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise CacheError(f"the cache {level} belongs to or can be written by others: {remedy}.")
    return path


def renew(path: Path) -> None:
    """Note that a cached file was used. Reading does not, where access times are off or kept once a day."""
    with suppress(OSError):
        status = path.stat()
        if time.time() - status.st_atime > _RENEW_S:
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))


def prune(directory: Path, limit_bytes: int) -> None:
    """Delete the files that were longest not used, until the rest is within the limit, and parts of files
    whose process died. Locks stay: another process may hold one, and would not know that it is no longer
    the one that all others take."""
    held: list[tuple[int, int, Path]] = []
    for path in directory.iterdir():
        with suppress(OSError):  # another process deletes, too
            status = path.stat()
            if path.suffix == ".part" and time.time() - status.st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)
            elif stat.S_ISREG(status.st_mode) and path.suffix not in (".lock", ".part"):
                held.append((status.st_atime_ns, status.st_size, path))
    excess = sum(size for _, size, _ in held) - limit_bytes
    for _, size, path in sorted(held):
        if excess <= 0:
            break
        excess -= size
        path.unlink(missing_ok=True)


@contextmanager
def cache_lock(path: Path) -> Iterator[None]:
    """Hold the lock that guards one cached file or directory against other processes."""
    with FileLock(path.with_name(path.name + ".lock")):
        yield


def sha256_stream(stream: BinaryIO, size: int | None = None) -> str:
    """Hex sha256 of the next ``size`` bytes of ``stream``, or of all that follow."""
    digest = hashlib.sha256()
    left = size
    while left is None or left > 0:
        chunk = stream.read(_CHUNK if left is None else min(_CHUNK, left))
        if not chunk:
            break
        digest.update(chunk)
        if left is not None:
            left -= len(chunk)
    return digest.hexdigest()


def sha256_file(path: Path, size: int | None = None) -> str:
    """Hex sha256 of a file, or of its first ``size`` bytes; remembered by the file's identity.

    Identity is device, inode, length and time of change in nanoseconds. The memory lives in the
    user's own cache; without a usable cache the file is simply hashed again.
    """
    status = path.stat()
    identity = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
    key = hashlib.sha256(f"{identity}:{size}".encode()).hexdigest()[:32]
    memory: Path | None = None
    with suppress(CacheError):
        memory = cache_dir("digests") / key
    if memory is not None:
        with suppress(OSError, ValueError, KeyError):
            remembered = json.loads(memory.read_text())
            if remembered["identity"] == identity:
                renew(memory)
                return str(remembered["sha256"])
    with path.open("rb") as stream:
        digest = sha256_stream(stream, size)
    if memory is not None:
        with suppress(OSError):
            write_atomically(memory, json.dumps({"identity": identity, "sha256": digest}).encode())
            if key.endswith("0"):  # looking at all of them takes time
                prune(memory.parent, _DIGESTS_BYTES)
    return digest
