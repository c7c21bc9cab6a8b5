from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from wasmgraph.errors import CacheError, DigestError, FetchError
from wasmgraph.models import packages
from wasmgraph.models.packages import Package, package_file

GOOD = b"the real file"


@pytest.fixture
def package() -> Package:
    return Package("npm", "thing", "1.0.0", "thing-1.0.0.tgz", hashlib.sha256(GOOD).hexdigest())


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the registry serves, in order; a download takes the first."""
    served: list[bytes] = []
    monkeypatch.setattr(packages, "_download", lambda _, path: path.write_bytes(served.pop(0)))
    return served


def test_a_bad_file_is_deleted_and_fetched_once_more(empty_cache, downloads, package: Package) -> None:
    downloads += [b"tampered", GOOD]
    said: list[str] = []
    assert package_file(package, said.append).read_bytes() == GOOD
    assert any("wrong sha256 (attempt 1), deleted" in text for text in said)


def test_two_bad_files_are_an_error_and_leave_nothing(
    empty_cache: Path, downloads, package: Package
) -> None:
    downloads += [b"tampered", b"again"]
    with pytest.raises(DigestError, match=r"sha256 is .*expected .*twice"):
        package_file(package, print)
    assert not (empty_cache / "packages" / package.filename).exists()


def test_a_good_file_is_fetched_once(empty_cache, downloads, package: Package) -> None:
    downloads += [GOOD]
    assert package_file(package, print) == package_file(package, print)


def test_a_cached_file_that_changed_is_fetched_again(empty_cache, downloads, package: Package) -> None:
    downloads += [GOOD, GOOD]
    package_file(package, print).write_bytes(b"bit rot")
    assert package_file(package, print).read_bytes() == GOOD


def test_without_npm(empty_cache, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "which", lambda _: None)
    with pytest.raises(FetchError, match="npm, which is not installed"):
        package_file(package, print)


def test_an_unknown_package(empty_cache: Path) -> None:
    missing = Package("pypi", "wasmgraph-there-is-no-such-package", "9.9", "x.whl", "0" * 64)
    with pytest.raises(FetchError, match="cannot be fetched"):
        package_file(missing, print)
    assert not [p for p in (empty_cache / "packages").iterdir() if p.suffix != ".lock"]


def test_an_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: Package) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WASMGRAPH_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError):
        package_file(package, print)
