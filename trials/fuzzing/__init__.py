"""Malformed or unusual inputs: each module here generates one kind, by seed, and reports the outcome.

``case(seed, place)`` runs one case in the directory ``place`` and returns the outcome in a word or two:
what was done, or ``refused: CHECK``. Any exception from it other than a :class:`WasmgraphError` is a find.
"""
