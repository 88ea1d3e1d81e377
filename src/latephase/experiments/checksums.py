"""SHA256SUMS: what the files of a result were when they were written, as the command sha256sum reads it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from latephase.experiments.checkpoints import write_text

SUMS = "SHA256SUMS"


def write_sums(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write the checksums of some files.

    Args:
        folder: Their folder.
        contents: The content of each by its name.

    Raises:
        ExperimentError: If it cannot be written.
    """
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items()]
    write_text(folder / SUMS, "".join(lines))


def damaged(folder: Path) -> list[Path]:
    """The files of a folder that are missing or not what was written.

    Args:
        folder: The folder; one without SHA256SUMS is taken as it is.

    Returns:
        The paths, in the order of SHA256SUMS; itself, if it cannot be read.
    """
    sums = folder / SUMS
    try:
        lines = sums.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return []
    except ValueError:
        return [sums]
    found = []
    for line in lines:
        match = re.fullmatch(r"([0-9a-f]{64})  ([\w.-]+)", line)
        if match is None:
            return [sums]
        path = folder / match[2]
        if not path.is_file() or _digest(path) != match[1]:
            found.append(path)
    return found if lines else [sums]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
