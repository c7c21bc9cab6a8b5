from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from wasmgraph.errors import CacheError
from wasmgraph.files import cache_dir, prune, replacing, sha256_file, write_atomically


def test_replacing_leaves_the_old_file_and_nothing_else_on_error(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomically_replaces(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomically(path, b"1")
    write_atomically(path, b"2")
    assert path.read_bytes() == b"2"
    assert list(tmp_path.iterdir()) == [path]


def test_digest_is_remembered_until_the_file_changes(empty_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abcdef")
    assert sha256_file(path, 3) == hashlib.sha256(b"abc").hexdigest()
    assert sha256_file(path) == hashlib.sha256(b"abcdef").hexdigest()
    path.write_bytes(b"changed")
    assert sha256_file(path) == hashlib.sha256(b"changed").hexdigest()
    memory = next((empty_cache / "digests").iterdir())
    memory.write_text("{ torn")
    assert sha256_file(path) == hashlib.sha256(b"changed").hexdigest()


def test_a_cache_that_others_can_write_is_refused(empty_cache: Path) -> None:
    (empty_cache / "models").mkdir(parents=True)
    (empty_cache / "models").chmod(0o777)
    with pytest.raises(CacheError, match="can be written by others: set WASMGRAPH_CACHE"):
        cache_dir("models")


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WASMGRAPH_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="cannot be written"):
        cache_dir("models")


def test_the_cache_is_private(empty_cache: Path) -> None:
    assert cache_dir("compiled").stat().st_mode & 0o077 == 0


def test_a_root_that_others_can_write_is_refused(empty_cache: Path) -> None:
    cache_dir("compiled")
    empty_cache.chmod(0o777)
    with pytest.raises(CacheError, match="can be written by others"):
        cache_dir("compiled")


def test_links_are_followed_and_devices_written_to(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    link.symlink_to(real)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    write_atomically(Path("/dev/null"), b"gone")
    assert not Path("/dev/null").is_file()


def test_pruning_takes_the_longest_unread_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        path = tmp_path / name
        path.write_bytes(b"x" * 10)
        os.utime(path, (1_000_000 - age, 1_000_000))
    prune(tmp_path, 25)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "middle"}


def test_pruning_takes_parts_of_files_that_nobody_writes(tmp_path: Path) -> None:
    for name, age in (("abandoned.part", 2 * 86400), ("written.part", 0)):
        path = tmp_path / name
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    prune(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["written.part"]
