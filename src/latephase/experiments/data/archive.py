"""Images inside tar archives, which are never unpacked to the disk."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Self

from latephase.experiments.data.encoded import SUFFIXES, Encoded, InArchive, InMemory
from latephase.experiments.errors import ExperimentError

_ENDINGS = (".tar", ".tar.xz", ".tar.gz", ".tgz", ".tar.bz2")
# What of a compressed archive is kept in memory at most: there is no reading it from the middle.
_LIMIT = 4 * 2**30
_LONGEST_NAME = 2**20
_NAMES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Header(tarfile.TarInfo):
    """A member's header; one of a long name is read into memory whole, however long it claims to be."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _NAMES and header.size > _LONGEST_NAME:
            raise tarfile.ReadError(f"a name in it claims to be {header.size:,} bytes long")
        return header


def archive_in(path: str) -> tuple[Path, PurePosixPath] | None:
    """Find an archive in a path, as in `images.tar.xz/train`.

    Args:
        path: A path that may lead into an archive.

    Returns:
        The archive and the folder inside it; None if no part of the path is one.
    """
    whole = Path(path)
    for part in (whole, *whole.parents):
        if part.name.lower().endswith(_ENDINGS) and not part.is_dir():
            return part, PurePosixPath(whole.relative_to(part).as_posix())
    return None


def list_archive(archive: Path, folder: PurePosixPath) -> list[tuple[str, Encoded]]:
    """The images in a folder of an archive.

    Only regular files are looked at, and only their bytes are read: links, devices and names that lead out of the
    archive have nothing to do harm with.

    Args:
        archive: A tar archive, compressed or not.
        folder: The folder inside it whose sub-folders are the classes.

    Returns:
        Class and image, sorted by their names.

    Raises:
        ExperimentError: If the archive is missing or damaged, has no such folder, or is too large to be read whole.
    """
    if not archive.is_file():
        raise ExperimentError(f"there is no data archive {archive}")
    found: list[tuple[str, str, Encoded]] = []
    tops: set[str] = set()
    passed = 0
    try:
        with tarfile.open(archive, tarinfo=_Header) as tar:
            compressed = not isinstance(tar.fileobj, io.BufferedReader)
            for member in tar:
                passed += member.size
                if compressed and passed > _LIMIT:
                    raise ExperimentError(
                        f"{archive} unpacks to more than {_LIMIT // 2**30} GiB; pack it as a plain .tar"
                    )
                name = PurePosixPath(member.name)
                if not member.isreg() or member.issparse() or name.suffix.lower() not in SUFFIXES:
                    continue
                if name.is_absolute() or ".." in name.parts:
                    raise ExperimentError(f"{archive} holds the unsafe name {member.name}; it was not read")
                tops.add(name.parts[0])
                if not name.is_relative_to(folder) or len(name.relative_to(folder).parts) < 2:
                    continue
                image: Encoded = InArchive(str(archive), member.name, member.offset_data, member.size)
                if compressed:
                    file = tar.extractfile(member)
                    assert file is not None
                    image = InMemory(f"{archive}/{member.name}", file.read())
                found.append((name.relative_to(folder).parts[0], member.name, image))
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise ExperimentError(f"cannot read {archive} as a tar archive; it may be truncated ({error})") from error
    if not found:
        raise ExperimentError(
            f"{archive} holds no images in {folder if folder.parts else 'it'}, in one folder for each class; "
            f"its folders are {', '.join(sorted(tops)) or 'none'}, to be named as {archive}/FOLDER"
        )
    return [(label, image) for label, _, image in sorted(found, key=lambda f: (f[0], f[1]))]
