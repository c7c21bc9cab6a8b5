"""Inputs that nobody meant well: each module here makes one kind, by seed, and says what became of it.

``case(seed, place)`` does one case in the directory ``place`` and returns the outcome in a word or two:
what was done, or ``refused: CHECK``. Anything but a :class:`WasmgraphError` that comes out of it is a find.
"""
