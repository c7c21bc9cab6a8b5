"""Two revisions of wasmgraph measured in one interleaved run: results that may be judged by time."""

from wasmgraph.regress.checkouts import Checkout, checkout, repository
from wasmgraph.regress.paired import Options, measure_pair

__all__ = ["Checkout", "Options", "checkout", "measure_pair", "repository"]
