"""The targets of compilation: one frozen record for each, which every rule reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wasmgraph.errors import TargetError
from wasmgraph.host import cpu_features

Kind = Literal["wasm", "native"]


@dataclass(frozen=True)
class Target:
    """One instruction set and the register tile that suits it.

    Attributes
    ----------
    vector_bytes : size of one vector register; 4: scalar code
    tile_pixels, tile_channels : output pixels × output channels that one tile of a convolution
        keeps in registers over the whole reduction
    fma : multiply and add are one instruction
    exact_vectors : vectors in the code have ``lanes`` elements; otherwise a tile's vectors have more, and
        LLVM divides them, which gives better addresses
    threaded : kernels divide their outer loops among the threads of a pool, whose number is chosen when the
        artifact is loaded
    cpu : LLVM's name of the processor to compile for; empty: this host's (native), generic (wasm)
    features : instruction set extensions the code needs or (with ``-``) must not use, in LLVM's names
    """

    name: str
    kind: Kind
    vector_bytes: int
    tile_pixels: int
    tile_channels: int
    fma: bool = False
    exact_vectors: bool = False
    threaded: bool = False
    cpu: str = ""
    features: tuple[str, ...] = ()

    def lanes_of(self, dtype: str) -> int:
        """Elements of a numpy dtype in one vector register; 1 in scalar code."""
        bits = 8 if dtype == "bool" else int(dtype.strip("uintfloa"))
        return 1 if self.vector_bytes == 4 else 8 * self.vector_bytes // bits

    @property
    def lanes(self) -> int:
        """Elements of float32 in one vector register."""
        return self.lanes_of("float32")

    @property
    def flops_per_cycle(self) -> int:
        """Multiplications and additions a cycle of a core with two vector units, for the cost model. The
        peak of this core is measured (``compiler/inspect/roofline.py``)."""
        return 2 * self.lanes * (2 if self.fma else 1)

    @property
    def prefetch(self) -> bool:
        """Whether an instruction fetches memory into the cache without waiting: WebAssembly has none."""
        return self.kind == "native"


# Register tiles in wasm: Wasmtime's Cranelift has 16 vector registers on x86-64; 2 × 16 channels
# is 8 accumulators, 4 weight vectors and a broadcast. Larger tiles spill (24 to 30 GFLOP/s
# against 42). The scalar tile has the same shape, in scalar registers.
_TARGETS = {
    "wasm32": Target("wasm32", "wasm", vector_bytes=4, tile_pixels=2, tile_channels=4),
    "wasm32-relaxed-simd": Target(
        "wasm32-relaxed-simd",
        "wasm",
        vector_bytes=16,
        tile_pixels=2,
        tile_channels=16,
        fma=True,
        exact_vectors=True,  # LLVM splits wide vectors before it fuses multiply and add
        features=("simd128", "relaxed-simd"),
    ),
    "wasm32-simd128": Target(
        "wasm32-simd128", "wasm", vector_bytes=16, tile_pixels=2, tile_channels=16, features=("simd128",)
    ),
    "wasm32-simd128-threads": Target(
        "wasm32-simd128-threads",
        "wasm",
        vector_bytes=16,
        tile_pixels=2,
        tile_channels=16,
        threaded=True,
        features=("simd128", "atomics", "bulk-memory", "mutable-globals"),
    ),
}
# The engine's features that a wasm artifact may need.
WASM_FEATURES = frozenset(feature for target in _TARGETS.values() for feature in target.features)


def _native() -> Target:
    """This processor at full width: two vectors of channels, as many pixels as registers hold."""
    features = set(cpu_features())
    if {"avx512f", "avx512vl"} <= features:
        return Target("native", "native", vector_bytes=64, tile_pixels=14, tile_channels=32, fma=True)
    if {"avx2", "fma"} <= features:
        return Target("native", "native", vector_bytes=32, tile_pixels=6, tile_channels=16, fma=True)
    return Target(
        "native", "native", vector_bytes=16, tile_pixels=6, tile_channels=8, fma="asimd" in features
    )


def _native_128() -> Target:
    """Native code with SIMD128's means: 128-bit vectors in 16 registers, no fused multiply-add.

    On x86-64 it is encoded as engines encode it, with AVX's three operands and broadcasts from memory, if
    this processor has them.
    """
    available = cpu_features()
    return Target(
        "native-128",
        "native",
        vector_bytes=16,
        tile_pixels=2,
        tile_channels=16,
        exact_vectors=True,  # with AVX, LLVM would make them 256 bits wide
        cpu="x86-64-v2" if "sse4_2" in available else "",
        features=("+avx", "+prefer-128-bit") if "avx" in available else (),
    )


_HOST_TARGETS = {"native": _native, "native-128": _native_128}


def target_names() -> tuple[str, ...]:
    """Names that :func:`get_target` takes."""
    return (*_TARGETS, *_HOST_TARGETS)


def get_target(name: str) -> Target:
    """Return the target of that name.

    Raises
    ------
    TargetError
        There is none; the message lists those there are.
    """
    if name in _HOST_TARGETS:
        return _HOST_TARGETS[name]()
    if name not in _TARGETS:
        raise TargetError(f"unknown target {name!r}; there are {', '.join(target_names())}.")
    return _TARGETS[name]
