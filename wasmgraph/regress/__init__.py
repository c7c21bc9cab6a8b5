"""Two revisions of wasmgraph, measured in one interleaved run so that their times may be compared."""

from wasmgraph.regress.checkouts import Checkout, checkout, repository
from wasmgraph.regress.paired import Options, measure_pair

__all__ = ["Checkout", "Options", "checkout", "measure_pair", "repository"]
