"""Judging: records go in, verdicts come out. Needs neither TVM nor Wasmtime."""

from wasmgraph.analysis.compare import Comparison, Verdict, compare
from wasmgraph.analysis.thresholds import Thresholds, read_thresholds

__all__ = ["Comparison", "Thresholds", "Verdict", "compare", "read_thresholds"]
