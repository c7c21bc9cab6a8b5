"""Measurement records: what a benchmark writes into pytest-benchmark's ``extra_info``.

The JSON file is pytest-benchmark's own; wasmgraph adds flat keys to every benchmark's
``extra_info`` (:class:`Record`) and one ``wasmgraph`` object to the file (:class:`RunInfo`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wasmgraph.errors import RecordError, needing

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Record:
    """One backend on one model. Sizes in bytes, times in seconds; None: not measured here.

    Attributes
    ----------
    weights : ``trained``, ``random``, or ``unknown`` for a model without that description
    length : tokens of each text that a network of text takes at once
    dims : values of the model's open dimensions, ``batch=1,seq=8``
    reference : the backend that ``ratio`` divides by
    ratio, ratio_low, ratio_high : median latency over the reference's, same run, with the 95 %
        bootstrap interval
    module_bytes : size of the artifact without its parameters
    ops_scheduled, ops_fallback : calls of the plan with a schedule rule, and without one
    ops_slow : calls for a product or a convolution under a rule that is not made for them
    calls_slow : calls for a product or a convolution that took more than four times as long as the roofline
        of their arithmetic and their operands allows
    notes : the compiler's remarks on how the artifact was made
    top1, top5 : inputs whose label is first, or among the first five (of ``inputs``)
    inputs, inputs_sha256 : number and digest of the inputs of the accuracy figures
    agreement : inputs whose first class is the reference's
    max_prob_diff, max_logit_diff : largest absolute difference to the reference over all inputs
    cosine_min : of a network that makes vectors of texts: least cosine between a text's vector and the
        reference's, over all inputs
    neighbours_agree : texts whose nearest other text among the inputs is the reference's
    peak_gflops, read_gb_s : the roofline of the target in this engine, measured between the rounds
        of the profile (10⁹ floating-point operations, 10⁹ bytes a second)
    work_fuel : instructions of one inference, as Wasmtime's fuel counts them, in an instrumented run of
        its own (with one thread, where the target has several)
    machine_code_bytes : size of Cranelift's code for a fixed processor of this architecture
    peak_memory_bytes : linear memory at the end of a run; it never shrinks
    p90_s, p99_s, mad_s : of the latency: percentiles, and median absolute deviation
    warmup_rounds : rounds at the beginning that were slower than all that follow
    outliers : rounds beyond 1.5 interquartile ranges from the quartiles; they are counted, not removed
    unstable : why the rounds cannot be relied on, with a remedy, if they spread too far
    direct_share : share of that peak reached by direct convolutions, weighted by time
    other_share : share of the time spent outside convolutions
    products_share, attention_share : shares of that peak reached by matrix products with known weights, and
        by attention, weighted by time
    products_read_share : bytes of those products' operands a second, over those that the roofline reads
    outside_products_share : share of the time spent outside matrix products and attention
    sessions : how many ran at the same time, each in a thread
    runs_per_s, sessions_p50_s, sessions_p99_s : their inferences a second together, and the seconds of a
        call
    session_bytes : memory that one more session of a graph takes for itself alone
    artifact_bytes, engine_bytes : on disk: the graph's file, and the engine besides Python and numpy
    ready_s, first_output_s : from ``load(path)``, compiled code cached, to a session that accepts
        inputs, and to the first outputs (medians)
    change_s : how much longer a call takes if a dimension is another than in the call before (medians)
    """

    model: str
    weights: str
    backend: str
    target: str
    runtime: str
    threads: int
    batch: int
    engine: str
    engine_config: str
    model_sha256: str
    length: int | None = None
    dims: str | None = None
    reference: str | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    module_bytes: int | None = None
    param_bytes: int | None = None
    arena_bytes: int | None = None
    work_fuel: int | None = None
    machine_code_bytes: int | None = None
    peak_memory_bytes: int | None = None
    kernels: int | None = None
    ops_scheduled: int | None = None
    ops_fallback: int | None = None
    ops_slow: int | None = None
    notes: str | None = None
    p90_s: float | None = None
    p99_s: float | None = None
    mad_s: float | None = None
    warmup_rounds: int | None = None
    outliers: int | None = None
    unstable: str | None = None
    inputs: int | None = None
    inputs_sha256: str | None = None
    top1: int | None = None
    top5: int | None = None
    agreement: int | None = None
    max_prob_diff: float | None = None
    max_logit_diff: float | None = None
    cosine_min: float | None = None
    neighbours_agree: int | None = None
    peak_gflops: float | None = None
    read_gb_s: float | None = None
    direct_share: float | None = None
    other_share: float | None = None
    products_share: float | None = None
    products_read_share: float | None = None
    attention_share: float | None = None
    outside_products_share: float | None = None
    calls_slow: int | None = None
    sessions: int | None = None
    runs_per_s: float | None = None
    sessions_p50_s: float | None = None
    sessions_p99_s: float | None = None
    session_bytes: int | None = None
    artifact_bytes: int | None = None
    engine_bytes: int | None = None
    ready_s: float | None = None
    first_output_s: float | None = None
    change_s: float | None = None

    def to_extra_info(self) -> dict[str, Any]:
        """Flat keys for ``benchmark.extra_info``, without those not measured."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Pairing:
    """One side of an interleaved run of two revisions: round *n* of one file was measured beside round *n*
    of the other, ``per_process`` of them in each pair of processes."""

    run: str
    side: Literal["base", "head"]
    per_process: int


@dataclass(frozen=True)
class RunInfo:
    """Properties of a whole run.

    Attributes
    ----------
    notices : to be shown first
    skipped, failed : by case, why
    host : identifies the machine without naming it; times are comparable only on one host
    pairing : which side of a paired run this is, None for any other
    """

    notices: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    pairing: Pairing | None = None
    schema: int = SCHEMA

    @staticmethod
    def of(data: Mapping[str, Any], path: str | Path = "the results file") -> RunInfo:
        """From a results file's ``wasmgraph`` object; empty where there is none.

        Raises
        ------
        RecordError
            It is malformed, or of a newer schema.
        """
        if "wasmgraph" not in data:
            return RunInfo()
        raw = data["wasmgraph"]
        try:
            schema = raw.get("schema", SCHEMA)
            if type(schema) is not int or schema < 1:
                raise TypeError(f"schema is {schema!r}")
            if schema > SCHEMA:
                raise RecordError(
                    f"{path} has schema {schema}, this wasmgraph reads up to {SCHEMA}: update wasmgraph."
                )
            pairing = raw.get("pairing")
            return RunInfo(
                tuple(_texts("notices", raw.get("notices", []))),
                dict(zip(*_cases("skipped", raw), strict=True)),
                dict(zip(*_cases("failed", raw), strict=True)),
                _texts("host", [raw.get("host", "")])[0],
                None if pairing is None else _pairing(pairing),
                schema,
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise RecordError(f"{path}: its 'wasmgraph' entry cannot be read: {error}.") from error


def _texts(name: str, values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{name} {values!r}, which is no text")
    return values


def _cases(name: str, raw: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Cases and their reasons."""
    cases = raw.get(name, {})
    return _texts(name, list(cases.keys())), _texts(name, list(cases.values()))


def _pairing(raw: Any) -> Pairing:
    pairing = Pairing(**raw)
    if type(pairing.per_process) is not int or pairing.per_process < 1:
        raise ValueError(f"per_process is {pairing.per_process!r}")
    return pairing


def photographs_of(results: Path) -> Path:
    """The folder of thumbnails of a results file's photographs, if they were kept."""
    return results.with_suffix(".photos")


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a pytest-benchmark JSON file.

    Raises
    ------
    RecordError
        It cannot be read, is not JSON, or not pytest-benchmark's.
    """
    try:
        text = Path(path).read_text().replace('@tvm"', '@native"')  # as old files name it
        data = json.loads(text)
        if _SURROGATE.search(text):  # a lone surrogate cannot be written to a terminal or a file
            json.dumps(data, ensure_ascii=False).encode()
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not JSON ({error}); was it cut off while written?") from error
    if not isinstance(data, dict) or not isinstance(data.get("benchmarks"), list):
        raise RecordError(
            f"{path} is not a pytest-benchmark file: make one with `pytest bench --benchmark-json={path}`."
        )
    return data


def results(path: str | Path) -> pd.DataFrame:
    """A results file as a table: one row a benchmark.

    Columns: ``test`` (``test_latency`` …), ``rounds`` (a count), ``median_s``, ``min_s``,
    ``max_s``, ``mean_s``, ``stddev_s`` (seconds a call), ``rounds_s`` (every round, seconds), and
    the fields of :class:`Record`, with None where a benchmark does not have them.

    Raises
    ------
    RecordError
        The file is not a results file.
    """
    with needing("reading results", "report"):
        import pandas as pd  # noqa: F401
    data = read_results(path)
    RunInfo.of(data, path)
    return table(data, path)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"number of seconds, but {value!r}")
    return float(value)


def table(data: Mapping[str, Any], path: str | Path) -> pd.DataFrame:
    """:func:`results` of a file that was already read; ``path`` names it in errors."""
    import pandas as pd

    rows = []
    names = [f.name for f in fields(Record)]
    for number, benchmark in enumerate(data["benchmarks"]):
        try:
            stats, extra = benchmark["stats"], benchmark["extra_info"]
            row = {
                "test": benchmark["name"].split("[", 1)[0],
                "rounds": stats["rounds"],
                **{f"{key}_s": _seconds(stats[key]) for key in ("median", "min", "max", "mean", "stddev")},
                "rounds_s": stats.get("data") or [],
            }
            if not isinstance(extra, dict) or "backend" not in extra:
                raise KeyError("record of wasmgraph")
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise RecordError(f"{path}: benchmark {number} has no {error}.") from error
        rows.append(row | {name: extra.get(name) for name in names})
    columns = ["test", "rounds", "median_s", "min_s", "max_s", "mean_s", "stddev_s", "rounds_s"]
    return pd.DataFrame(rows, columns=[*columns, *names])
