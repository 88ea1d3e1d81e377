"""Checkpoints that are whole or refused: written beside, checked by their SHA-256, then renamed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from latephase import whole_files
from latephase.checked_files import has_checksum, read_tensors, write_tensors
from latephase.errors import DamagedFileError
from latephase.experiments.errors import ExperimentError
from latephase.whole_files import previous_of

_log = logging.getLogger(__name__)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; the one before it, unless it is damaged, stays beside it as `previous-<name>`.

    The state is written to a file of another name and flushed to the disk, and only then takes the place of the
    checkpoint, so whenever the process or the disk gives up, a whole checkpoint remains.

    Args:
        path: The file.
        state: Tensors and plain values.

    Raises:
        ExperimentError: If the disk is full or cannot be written to.
    """
    write_whole(path, lambda file: write_tensors(file, state), keep_previous=is_whole(path))


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, or the one before it if this one is damaged, which a warning then says.

    Args:
        path: The file that `save_checkpoint` was given.

    Returns:
        The state, on the CPU; None if there is no checkpoint.

    Raises:
        ExperimentError: If there are checkpoints and none is whole, or one holds what is not loaded from files.
    """
    refusals = []
    for candidate in (path, previous_of(path)):
        try:
            state = read_tensors(candidate)
        except FileNotFoundError:
            continue
        except DamagedFileError as error:
            refusals.append(error)
            continue
        if refusals:
            step = state.get("step", "?")
            _log.warning("%s; going on from %s, of minibatch %s", refusals[0], candidate.name, step)
        return state
    if refusals:
        raise ExperimentError(
            f"no whole checkpoint at {path}: remove {path.parent} to start this run again ({refusals[0]})"
        ) from refusals[0]
    return None


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is there and has the checksum that was written with it.

    Args:
        path: The file; the one before it does not count.

    Returns:
        True if it is as it was written.
    """
    try:
        return has_checksum(path)
    except FileNotFoundError:
        return False


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
