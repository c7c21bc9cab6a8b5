"""Stage 10: records go in, one HTML file and a terminal table come out. No engine is needed."""

from __future__ import annotations

from wasmgraph.report.page import build_report
from wasmgraph.report.summary import Row, Summary, summarize
from wasmgraph.report.terminal import result_table

__all__ = ["Row", "Summary", "build_report", "result_table", "summarize"]
