"""The parameter file of a module that reads it through WASI: where it is, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

from wasmgraph.artifact import Artifact
from wasmgraph.errors import ArtifactError

_COMPLAINTS = {  # by what wasmgraph_load returns: compiler/link/csrc/params.c
    1: "cannot be opened",
    2: "cannot be read",
    3: "has another length than the one that the module was compiled with",
    4: "has another content than the one that the module was compiled with",
}


def params_file(artifact: Artifact, folder: Path | None) -> Path | None:
    """A module's parameter file, in the ``folder`` that was given or beside the module; None for a module
    that has its parameters.

    Raises
    ------
    ArtifactError
        The file is not there.
    """
    if artifact.params_path is None:
        return None
    path = (folder or artifact.params_path.parent) / artifact.params_path.name
    if not path.is_file():
        raise refusal(artifact, path, 1)
    return path


def refusal(artifact: Artifact, path: Path, code: int) -> ArtifactError:
    """The error for what the module's ``wasmgraph_load`` returned."""
    complaint = _COMPLAINTS.get(code, f"was refused ({code})")
    return ArtifactError(
        f"{artifact.path} reads its parameters from {path}, which {complaint}. Say where they are with"
        " params=DIR (--params-dir DIR), or compile the model again.",
        check="params",
    )
