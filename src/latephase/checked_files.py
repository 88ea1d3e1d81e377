"""Tensors in files that are what was written or are refused: checksums, archives that hold what they say."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from ctypes import c_char
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .errors import DamagedFileError, ForeignFileError

# After the file of torch.save come its SHA-256 and this mark; torch.load itself still reads such a file.
_MARK = b"latephase checkpoint\n"
_CHUNK = 1 << 20


class Hashing:
    """A binary file that hashes what is written to it.

    Args:
        file: The file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write and hash.

        Args:
            data: The bytes.

        Returns:
            How many were written.
        """
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Pass on what is buffered."""
        self._file.flush()

    def digest(self) -> bytes:
        """The SHA-256 of everything so far."""
        return self._hash.digest()


def write_tensors(file: BinaryIO, state: Mapping[str, Any]) -> None:
    """Write a state as `torch.save` does, and its checksum behind it.

    Args:
        file: A file that is open for writing.
        state: Tensors and plain values, in dicts and lists.
    """
    hashing = Hashing(file)
    torch.save(state, hashing)  # type: ignore[arg-type]
    file.write(hashing.digest() + _MARK)


def has_checksum(path: Path) -> bool:
    """Whether a file is as `write_tensors` wrote it.

    Args:
        path: The file.

    Returns:
        True if its checksum is right.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        return _has_checksum(file)


def read_tensors(path: Path) -> dict[str, Any]:
    """Read what `write_tensors` wrote: only if the checksum holds, and then without running any code of the file's.

    Args:
        path: The file.

    Returns:
        The state, on the CPU.

    Raises:
        DamagedFileError: The file is damaged or was not written to its end.
        ForeignFileError: Its checksum is right, but it is none of ours: somebody made it to do harm.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        if not _has_checksum(file):
            raise DamagedFileError(f"{path} is damaged or was not written to its end")
        try:
            check_archive(file, path)
            state = torch.load(file, map_location="cpu", weights_only=True)
        # Of what somebody made by hand torch's reader complains in many ways.
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise ForeignFileError(
                f"{path} is not what latephase writes: it holds more than tensors and plain values; it is not loaded "
                f"({reason})"
            ) from error
    if not isinstance(state, dict):
        raise ForeignFileError(f"{path} is not what latephase writes: it holds no dict but {type(state).__name__}")
    return state


def check_archive(file: Path | BinaryIO, path: Path | str | None = None, room: int = 0) -> None:
    """Check every entry of an archive that torch wrote against its CRC-32, which torch itself does not do.

    Torch compresses no tensors. So an entry that is compressed, or entries that are together longer than the file, were
    not written by it, and are refused before any memory is spent on them.

    Args:
        file: The archive: its path, or the open file, which is left at its beginning.
        path: What the message calls it; None takes the path.
        room: Bytes more than the file has that compressed entries may unpack to; 0 refuses them.

    Raises:
        DamagedFileError: It is no whole archive of torch's.
        OSError: It cannot be read.
    """
    path = path or (file if isinstance(file, Path) else "the archive")
    try:
        with zipfile.ZipFile(file) as archive:
            size = archive.fp.seek(0, io.SEEK_END) if archive.fp else 0
            entries = archive.infolist()
            names = {entry.filename for entry in entries}
            packed = [e for e in entries if e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size]
            claimed = sum(entry.file_size for entry in entries)
            away = any(".." in name.split("/") or name.startswith("/") for name in names)
            if (packed and not room) or away or len(names) < len(entries) or claimed > size + room:
                raise DamagedFileError(
                    f"{path} is not an archive as torch writes it: entries are compressed, repeated, lead out of it or "
                    "claim more than the file holds; it was not loaded"
                )
            bad = archive.testzip()
    except DamagedFileError:
        raise
    except OSError:
        raise
    except Exception as error:  # zipfile has no one exception for what is broken
        raise DamagedFileError(f"{path} is damaged: it is no whole archive ({error})") from error
    if bad is not None:
        raise DamagedFileError(
            f"{path} is damaged: its entry {bad} does not have the checksum that was written with it"
        )
    if not isinstance(file, Path):
        file.seek(0)


def _has_checksum(file: BinaryIO) -> bool:
    """Read the file to its end, and go back to its beginning."""
    tail = hashlib.sha256().digest_size + len(_MARK)
    left = file.seek(0, io.SEEK_END) - tail
    file.seek(0)
    if left < 0:
        return False
    hashed = hashlib.sha256()
    while left and (chunk := file.read(min(left, _CHUNK))):
        hashed.update(chunk)
        left -= len(chunk)
    whole = file.read() == hashed.digest() + _MARK
    file.seek(0)
    return whole


def digest(tree: Any) -> str:
    """The SHA-256 of tensors and plain values, whatever dicts and lists they are in.

    Args:
        tree: Tensors, numbers, strings, True, False and None, in dicts and lists; empty ones count for nothing, and a
            list counts as a dict of its positions.

    Returns:
        64 hexadecimal digits. Equal ones mean equal names, dtypes, shapes and bits.

    Example:
        >>> digest({"a": torch.zeros(2)}) == digest({"a": torch.zeros(2, 1)})
        False
    """
    hashed = hashlib.sha256()
    for name, value in sorted(_leaves(tree, ""), key=lambda leaf: leaf[0]):
        if isinstance(value, Tensor):
            value = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
            hashed.update(f"{name}\n{value.dtype} {tuple(value.shape)}\n".encode())
            hashed.update((c_char * value.nbytes).from_address(value.data_ptr()) if value.numel() else b"")
        else:
            hashed.update(f"{name}\n{value!r}\n".encode())
    return hashed.hexdigest()


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{name}/{key}")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from _leaves(value, f"{name}/{i}")
    else:
        yield name, tree
