"""``python -m wasmgraph.cli``."""

from wasmgraph.cli import main

main()
