"""A module's uses of WASI: parameters from a file, and the standard streams of a command."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from wasmgraph.abi import FIRST_CHECK
from wasmgraph.artifact import PARAMS_FOLDER, params_file
from wasmgraph.compiler.plan import Plan
from wasmgraph.tensors import TensorSpec


def _primes(count: int) -> list[int]:
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return found


def _root(value: int, power: int) -> int:
    """The largest integer that, raised to ``power``, is at most ``value``."""
    low, high = 0, 1 << (value.bit_length() // power + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**power <= value else (low, middle - 1)
    return low


def _fractions(count: int, power: int) -> str:
    """The first 32 bits of the fractional parts of roots of primes: SHA-256's constants (FIPS 180-4)."""
    roots = (_root(prime << 32 * power, power) for prime in _primes(count))
    return ", ".join(f"0x{root & 0xFFFFFFFF:08x}" for root in roots)


def place_params(params: Path) -> str:
    """Put the parameter file where modules look for it, beside the module; return its sha256."""
    with params.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = params.parent / PARAMS_FOLDER
    folder.mkdir()
    (folder / params_file(digest)).hardlink_to(params)
    return digest


def params_values(params: Path, digest: str) -> dict[str, str]:
    """Values for the ``@KEYS@`` of ``csrc/params.c``."""
    return {
        "PARAM_BYTES": str(params.stat().st_size),
        "PARAMS_FILE": params_file(digest),
        "DIGEST": ", ".join(f"0x{byte:02x}" for byte in bytes.fromhex(digest)),
        "ROUND_CONSTANTS": _fractions(64, 3),
        "INITIAL_STATE": _fractions(8, 2),
    }


def command_values(
    plan: Plan, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> dict[str, str]:
    """Values for the ``@KEYS@`` of ``csrc/command.c``."""

    def table(offsets: Sequence[int], specs: Sequence[TensorSpec]) -> str:
        return ", ".join(f"{{{at}u, {spec.nbytes}u}}" for at, spec in zip(offsets, specs, strict=True))

    size = sum(spec.nbytes for spec in inputs)
    expected = f"{size} bytes, {'; '.join(map(str, inputs))}"
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\?@' else "_" for c in expected)
    return {
        "INPUTS": table(plan.inputs, inputs),
        "OUTPUTS": table(plan.outputs, outputs),
        "INPUT_COUNT": str(len(inputs)),
        "OUTPUT_COUNT": str(len(outputs)),
        "INPUT_BYTES": str(size),
        "EXPECTED": plain,
        "FIRST_CHECK": str(FIRST_CHECK),
    }
