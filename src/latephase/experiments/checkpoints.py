"""Checkpoints that are whole or refused: written beside, checked by their SHA-256, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from latephase.experiments.errors import ExperimentError

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
    there = [candidate for candidate in (path, _previous(path)) if candidate.exists()]
    for candidate in there:
        state = _read(candidate)
        if state is not None:
            return state
        _log.warning("%s is damaged or was not written to its end; it is not used", candidate)
    if there:
        raise ExperimentError(f"no whole checkpoint at {path}: remove {path.parent} to start this run again")
    return None


def write_whole(path: Path, write: Callable[[BinaryIO], object], keep_previous: bool = False) -> None:
    """Write a file under another name, flush it to the disk, and only then let it take its place.

    Args:
        path: The file to be written; its folder is made if need be.
        write: Writes the content to an open binary file.
        keep_previous: Keep the file that was there as `previous-<name>`.

    Raises:
        ExperimentError: If the disk is full or cannot be written to; the old file is then untouched.

    Example:
        >>> write_whole(Path("notes.txt"), lambda file: file.write(b"whole or not at all"))
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            os.replace(path, _previous(path))
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        readable = _disk_error(path, error)
        if readable is None:
            raise
        raise readable from error


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is either whole or not there.

    Args:
        path: The file.
        text: Its content.

    Raises:
        ExperimentError: If the disk is full or cannot be written to.
    """
    write_whole(path, lambda file: file.write(text.encode()))


def _disk_error(path: Path, error: BaseException) -> ExperimentError | None:
    # torch.save wraps what its file raises; the errno is further down.
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    if cause.errno == errno.ENOSPC:
        return ExperimentError(f"no space left on the disk for {path}; what was written before is kept")
    return ExperimentError(f"cannot write {path}: {cause.strerror or cause}")


def _previous(path: Path) -> Path:
    return path.with_name(f"previous-{path.name}")


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
