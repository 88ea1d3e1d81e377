"""Checkpoints that are whole or refused: written beside, checked by their SHA-256, then renamed."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from latephase import whole_files
from latephase.experiments.errors import ExperimentError
from latephase.whole_files import previous_of

_log = logging.getLogger(__name__)

# After the file of torch.save come its SHA-256 and this mark; torch.load itself still reads such a file.
_MARK = b"latephase checkpoint\n"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; the one before it stays beside it as `previous-<name>`.

    The state is written to a file of another name and flushed to the disk, and only then takes the place of the
    checkpoint, so whenever the process or the disk gives up, a whole checkpoint remains.

    Args:
        path: The file.
        state: Tensors and plain values.

    Raises:
        ExperimentError: If the disk is full or cannot be written to.
    """

    def write(file: BinaryIO) -> None:
        hashing = _Hashing(file)
        torch.save(state, hashing)  # type: ignore[arg-type]
        file.write(hashing.digest() + _MARK)

    write_whole(path, write, keep_previous=True)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, or the one before it if this one is damaged.

    Args:
        path: The file that `save_checkpoint` was given.

    Returns:
        The state, on the CPU; None if there is no checkpoint.

    Raises:
        ExperimentError: If there are checkpoints and none is whole.
    """
    there = [candidate for candidate in (path, previous_of(path)) if candidate.exists()]
    for candidate in there:
        state = _read(candidate)
        if state is not None:
            return state
        _log.warning("%s is damaged or was not written to its end; it is not used", candidate)
    if there:
        raise ExperimentError(f"no whole checkpoint at {path}: remove {path.parent} to start this run again")
    return None


def write_whole(path: Path, write: Callable[[BinaryIO], object], keep_previous: bool = False) -> None:
    """Write a file that is whole or not there; see `latephase.whole_files.write_whole`.

    Args:
        path: The file to be written; its folder is made if need be.
        write: Writes the content to an open binary file.
        keep_previous: Keep the file that was there as `previous-<name>`.

    Raises:
        ExperimentError: If the disk is full or cannot be written to; the old file is then untouched.
    """
    whole_files.write_whole(path, write, keep_previous=keep_previous, error=ExperimentError)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is either whole or not there.

    Args:
        path: The file.
        text: Its content.

    Raises:
        ExperimentError: If the disk is full or cannot be written to.
    """
    write_whole(path, lambda file: file.write(text.encode()))


def _read(path: Path) -> dict[str, Any] | None:
    raw = path.read_bytes()
    end = len(raw) - len(_MARK) - hashlib.sha256().digest_size
    if end < 0 or not raw.endswith(_MARK):
        return None
    if hashlib.sha256(memoryview(raw)[:end]).digest() != raw[end : -len(_MARK)]:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(raw[:end]), map_location="cpu", weights_only=True)
    return state


class _Hashing:
    """A binary file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> bytes:
        return self._hash.digest()
