"""Weights of a run, or of anybody: read as tensors and nothing else, and checked where there is something to check."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from latephase.errors import DamagedFileError
from latephase.experiments.checksums import damaged
from latephase.experiments.errors import ExperimentError
from latephase.export.weights import deserialised


def read_weights(path: Path, called: str = "") -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: The file; where SHA256SUMS stands beside it, as in the folder of a run, it must be as it says.
        called: What stands before the path in messages.

    Returns:
        Its tensors, on the CPU.

    Raises:
        ExperimentError: If it cannot be read, or is not what was written.
    """
    if path in damaged(path.parent):
        raise ExperimentError(
            f"{called}{path} is damaged: it does not have the checksum in SHA256SUMS; run the command that trained it "
            "again, which makes it from the last checkpoint"
        )
    try:
        return deserialised(path)
    except DamagedFileError as error:
        raise ExperimentError(f"{called}{error}" if called else str(error)) from error
