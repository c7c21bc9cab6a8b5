"""The contract of a module and its host: names and signatures of exports, alignment, reading ahead.

docs/abi.md explains it. The linker gives modules these exports; the checks at load look for them.
"""

from __future__ import annotations

from collections.abc import Mapping

ALIGNMENT = 64  # bytes, of the arena and of the tensors in it: a cache line, any target's widest vector
# Kernels may read as many bytes past the end of an operand and ignore them: the last turn of a pipelined
# loop reads the pixels of one more. A module has as much memory behind its last tensor.
READ_AHEAD_BYTES = 4096

FIRST_DIM = 16  # what a run returns if the value of the first of a manifest's dims is outside its bounds
FIRST_CHECK = 256  # what a run returns for the first of a manifest's checks; 257 for the second, and so on

ARENA = "wasmgraph_arena"
PLAIN_LOOPS = "wasmgraph_plain_loops"
INIT = "wasmgraph_init"
LOAD = "wasmgraph_load"
STACK_POINTER = "__stack_pointer"

Signatures = Mapping[str, str]
# Of every graph; of a module that shares its memory among threads; of one that reads its parameters.
GRAPH: Signatures = {"wasmgraph_run": "() -> i32", "wasmgraph_step": "(i32) -> i32"}
POOL: Signatures = {
    INIT: "() -> ()",
    "wasmgraph_threads": "(i32) -> ()",
    "wasmgraph_worker": "() -> i32",
    "wasmgraph_fail": "() -> ()",
    "wasmgraph_stop": "() -> ()",
}
PARAMS: Signatures = {LOAD: "() -> i32"}
