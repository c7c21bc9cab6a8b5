from __future__ import annotations

from pathlib import Path

import pytest

from wasmgraph.analysis import read_thresholds
from wasmgraph.analysis.runs import DETERMINISTIC
from wasmgraph.errors import RecordError

TIME = "[time]\nleast = 0.01\nconfidence = 0.975\nprocesses = 10\n"
GOOD = 'schema = 1\n[metrics.work_fuel]\nbetter = "less"\n' + TIME


def test_every_deterministic_metric_has_a_threshold() -> None:
    known = read_thresholds()
    assert set(known.metrics) == {*DETERMINISTIC, "kernel_work"}


def test_the_last_override_that_names_a_series_counts(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(
        GOOD
        + '[[override]]\nseries = "resnet50-*"\nmetric = "work_fuel"\nbetter = "less"\nrelative = 0.5\n'
    )
    found = read_thresholds(path)
    assert found.limit("resnet50-wasm32@wasmtime", "work_fuel").relative == 0.5
    assert found.limit("squeezenet-wasm32@wasmtime", "work_fuel").relative == 0
    assert found.limit("resnet50-wasm32@wasmtime", "top5") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema = ", "not TOML"),
        ("schema = 2", "schema is 2"),
        ("schema = 1", "'metrics'"),
        ("schema = 1\nmetrics = 3\n" + TIME, "better"),
        ('schema = 1\n[metrics.top1]\nbetter = "up"\n' + TIME, "a limit has"),
        ('schema = 1\n[metrics.top1]\nbetter = "less"\nrelativ = 1\n' + TIME, "a limit has"),
        ('schema = 1\n[metrics.top1]\nbetter = "less"\nrelative = -1\n' + TIME, "negative"),
        ('schema = 1\n[metrics.top1]\nbetter = "less"\nrelative = nan\n' + TIME, "no finite number"),
        ('schema = 1\n[metrics.top1]\nbetter = "less"\nrelative = inf\n' + TIME, "no finite number"),
        ('schema = 1\n[metrics.typo]\nbetter = "less"\n' + TIME, "no metric 'typo'"),
        (GOOD + '[[override]]\nseries = 3\nmetric = "top1"\nbetter = "less"\n', "no text"),
        (GOOD + '[[override]]\nseries = "a"\nmetric = "typo"\nbetter = "less"\n', "no metric"),
        (GOOD.replace("0.01", "nan"), "no finite number"),
        (GOOD.replace("0.975", "nan"), "no finite number"),
        (GOOD.replace("0.01", "1" + "0" * 400), "too large"),
        (GOOD.replace("0.975", "1.5"), "out of range"),
    ],
)
def test_files_that_are_no_thresholds(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(RecordError, match=message):
        read_thresholds(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="No such file"):
        read_thresholds(tmp_path / "absent.toml")
