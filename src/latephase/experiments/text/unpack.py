"""Compressed texts: unpacked once, into a cache from which they can be memory-mapped."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from latephase.experiments.checkpoints import write_text, write_whole
from latephase.experiments.errors import ExperimentError

#: Bytes that an archive may unpack to; enwik9 is half of it.
LIMIT = 2 * 10**9

_XZ, _ZIP = b"\xfd7zXZ\x00", b"PK\x03\x04"
_OTHERS = {b"\x1f\x8b": "gzip", b"BZh91A": "bzip2", b"\x28\xb5\x2f\xfd": "Zstandard", b"7z\xbc\xaf": "7-Zip"}
_CHUNK = 2**20
_MEMORY = 2**28


def cache_folder() -> Path:
    """Where unpacked texts are kept.

    Returns:
        `latephase` in the folder of the variable XDG_CACHE_HOME, or in `~/.cache`.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "latephase"


def plain_file(path: Path, cache: Path | None = None, limit: int | None = None) -> Path:
    """The file to memory-map: the file itself, or for an archive what it unpacks to.

    An archive is known by its content and not by its name. It is unpacked into the cache under its own checksum, beside
    a file with size and checksum of the text; a text that does not agree with them is unpacked again.

    Args:
        path: A plain file, an .xz file, or a .zip archive of one file.
        cache: Folder of unpacked texts; None takes `cache_folder()`.
        limit: Bytes that an archive may unpack to; None takes `LIMIT`.

    Returns:
        Path of a file that holds the text and nothing else.

    Raises:
        ExperimentError: If the file cannot be read, is damaged, is packed in another way, or unpacks to too much.
    """
    try:
        with open(path, "rb") as file:
            begin = file.read(6)
            packed = begin.startswith((_XZ, _ZIP))
            checksum = hashlib.file_digest(file, "sha256").hexdigest() if packed else ""
    except OSError as error:
        raise ExperimentError(f"cannot read the text {path}: {error.strerror}") from error
    if not packed:
        _refuse_other(path, begin)
        return path
    text = (cache or cache_folder()) / f"{path.name.split('.')[0]}-{checksum[:16]}.txt"
    record = text.with_suffix(".json")
    if not _is_whole(text, record):
        hashed = hashlib.sha256()
        size = 0

        def unpack(file: BinaryIO) -> None:
            nonlocal size
            for chunk in _unpacked(path, begin, LIMIT if limit is None else limit):
                hashed.update(chunk)
                size += file.write(chunk)

        write_whole(text, unpack)
        write_text(record, json.dumps({"size": size, "sha256": hashed.hexdigest()}))
    return text


def _is_whole(text: Path, record: Path) -> bool:
    try:
        stated = json.loads(record.read_text(encoding="utf-8"))
        with open(text, "rb") as file:
            return {"size": text.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()} == stated
    except (OSError, ValueError, RecursionError):
        return False


def _refuse_other(path: Path, begin: bytes) -> None:
    for mark, name in _OTHERS.items():
        if begin.startswith(mark):
            raise ExperimentError(f"{path} is packed with {name}; a text is plain, an .xz file or a .zip of one file")
    if path.suffix.lower() in (".xz", ".zip"):
        raise ExperimentError(f"{path} is no {path.suffix[1:]} archive (it begins with {begin!r}); it may be truncated")


def _unpacked(path: Path, begin: bytes, limit: int) -> Iterator[bytes]:
    """The text of an archive in chunks, and an error as soon as there are too many of them."""
    too_much = ExperimentError(
        f"{path} unpacks to more than {limit:,} bytes, the limit; unpack it yourself and name the plain file"
    )
    size = 0
    try:
        with _opened(path, begin, limit, too_much) as file:
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                if size > limit:
                    raise too_much
                yield chunk
    except ExperimentError:
        raise
    # RuntimeError is what zipfile raises for a password, and NotImplementedError, one of them, for an unknown method.
    except (lzma.LZMAError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        raise ExperimentError(f"cannot unpack {path}; it may be truncated ({error})") from error


class _Xz:
    """What an .xz file unpacks to; the strongest preset needs 65 MB of memory, and a header may ask for gigabytes."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, _MEMORY)

    def read(self, size: int) -> bytes:
        while True:
            if self._unpacker.eof:
                # Streams may follow one another, padded with zeros.
                rest = self._unpacker.unused_data.lstrip(b"\0")
                while not rest and (more := self._packed.read(_CHUNK)):
                    rest = more.lstrip(b"\0")
                if not rest:
                    return b""
                self._unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, _MEMORY)
            elif self._unpacker.needs_input:
                rest = self._packed.read(_CHUNK)
                if not rest:
                    raise EOFError("it ends before its text does")
            else:
                rest = b""
            if text := self._unpacker.decompress(rest, size):
                return text


@contextmanager
def _opened(path: Path, begin: bytes, limit: int, too_much: ExperimentError) -> Iterator[BinaryIO | _Xz]:
    if begin.startswith(_XZ):
        with open(path, "rb") as packed:
            yield _Xz(packed)
        return
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(entries) != 1:
            names = ", ".join(entry.filename for entry in entries[:3]) or "nothing"
            raise ExperimentError(f"{path} holds {len(entries)} files ({names}, ...); a text is a .zip of one file")
        if entries[0].file_size > limit:
            raise too_much
        with archive.open(entries[0]) as member:
            yield member  # type: ignore[misc]  # an IO[bytes] that reads
