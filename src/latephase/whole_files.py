"""Files that are whole or not there: written under another name, flushed to the disk, then put in their place."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import LatePhaseError

if sys.platform != "win32":
    import fcntl

_PART = ".part"


def write_whole(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    keep_previous: bool = False,
    error: type[LatePhaseError] = LatePhaseError,
) -> None:
    """Write a file under another name, flush it to the disk, and only then let it take its place.

    Whenever the process is killed, the power fails or the disk is full, `path` is the old file or the new one, whole
    (or, for the moment between two renames, only `previous_of(path)` is there); once this returns, it is the new one.

    Args:
        path: The file to be written; its folder is made if need be.
        write: Writes the content to an open binary file.
        keep_previous: Keep the file that was there as `previous-<name>`.
        error: What to raise.

    Raises:
        LatePhaseError: The disk is full or cannot be written to; the old file is then untouched. It is of the class
            `error`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder, "notes.txt"), lambda file: file.write(b"whole or not at all"))
    """
    beside: Path | None = None
    try:
        _make_folder(path.parent)
        remove_leftovers(path.parent, path.name)
        with _locked_part(path) as file:
            beside = Path(file.name)
            write(file)
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()  # an open file cannot be renamed there
            put_in_place(beside, path, keep_previous=keep_previous)
    except BaseException as failure:
        if beside is not None:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
        message = _disk_message(path, failure)
        if message is None:
            raise
        raise error(message) from failure


def put_in_place(beside: Path, path: Path, *, keep_previous: bool = False) -> None:
    """Let a file that is on the disk already take another's place, so that it has done so once this returns.

    Args:
        beside: The file, in the same folder; its content has been flushed.
        path: Its place.
        keep_previous: Keep the file that was there as `previous-<name>`.

    Raises:
        OSError: It cannot be renamed.
    """
    if keep_previous and path.exists():
        os.replace(path, previous_of(path))
    os.replace(beside, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk.

    Args:
        path: The file or the folder.

    Raises:
        OSError: The disk gives an error.
    """
    if sys.platform == "win32" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as failure:
        # Some network file systems cannot flush a folder; there is nothing else that could be done then.
        if failure.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def previous_of(path: Path) -> Path:
    """Where `write_whole` keeps the file before.

    Args:
        path: The file.

    Returns:
        A path in the same folder.
    """
    return path.with_name(f"previous-{path.name}")


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove the unfinished files of processes that were killed; those of a living one stay.

    Args:
        folder: The folder; it need not be there.
        name: The file that was being written; any by default.
    """
    if sys.platform == "win32":
        return  # there is no flock; what killed processes leave stays
    for part in folder.glob(f".{name}.*{_PART}"):
        # A writer holds a lock on its file, which ends with it, however that ends. Where there are no locks, or the
        # file is another's, it is left alone.
        with contextlib.suppress(OSError), open(part, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked_part(path: Path) -> Iterator[BinaryIO]:
    while True:
        # No name is used twice, so that nobody who means an old file removes a new one.
        part = path.with_name(f".{path.name}.{secrets.token_hex(6)}{_PART}")
        with open(part, "xb") as file:
            if sys.platform != "win32":
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Before it was locked, another process may have thought it a left-over one.
            if os.fstat(file.fileno()).st_nlink > 0:
                yield file
                return


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, and wait until their names are on the disk."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush(folder.parent)


def _disk_message(path: Path, failure: BaseException) -> str | None:
    if isinstance(failure, LatePhaseError):
        return None  # whoever wrote has said already what is wrong, and it need not be this disk
    # torch.save wraps what its file raises; the errno is further down.
    cause: BaseException | None = failure
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk for {path}; what was written before is kept"
    return f"cannot write {path}: {cause.strerror or cause}"
