"""The parameter file of a module that reads it through WASI: its path, and errors about it."""

from __future__ import annotations

from pathlib import Path

from wasmgraph.artifact import Artifact
from wasmgraph.errors import ArtifactError

_COMPLAINTS = {  # by the result of wasmgraph_load (compiler/link/csrc/params.c)
    1: "cannot be opened",
    2: "cannot be read",
    3: "has another length than the one that the module was compiled with",
    4: "has another content than the one that the module was compiled with",
}


def params_file(artifact: Artifact, folder: Path | None) -> Path | None:
    """Return the path of a module's parameter file, in ``folder`` if given, otherwise beside the module;
    None for a module that contains its parameters.

    Raises
    ------
    ArtifactError
        The file does not exist.
    """
    if artifact.params_path is None:
        return None
    path = (folder or artifact.params_path.parent) / artifact.params_path.name
    if not path.is_file():
        raise refusal(artifact, path, 1)
    return path


def refusal(artifact: Artifact, path: Path, code: int) -> ArtifactError:
    """Return the error for a ``code`` that the module's ``wasmgraph_load`` returned."""
    complaint = _COMPLAINTS.get(code, f"was refused ({code})")
    return ArtifactError(
        f"{artifact.path} reads its parameters from {path}, which {complaint}. Say where they are with"
        " params_folder=DIR (--params-dir DIR), or compile the model again.",
        check="params",
    )
