"""metrics.jsonl: one line for each epoch, cut back to the checkpoint when a run resumes."""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path
from typing import Any

from latephase.experiments.checkpoints import write_text
from latephase.experiments.errors import ExperimentError

_log = logging.getLogger(__name__)

_CHECK = "crc32"


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add the line of an epoch.

    Args:
        path: The file.
        record: Its values.

    Raises:
        ExperimentError: If the line cannot be written.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(_line(record))
    except OSError as error:
        raise ExperimentError(f"cannot write {path}: {error.strerror}") from error


def read_records(path: Path, until: int | None = None) -> list[dict[str, Any]]:
    """Read the lines; a last one that an interruption left unfinished is passed over, a damaged one with a warning.

    Args:
        path: The file.
        until: Minibatches after the last epoch, where training has come to its end; records that are missing then are
            warned of too.

    Returns:
        The values of each epoch, in order; empty if there is no file.
    """
    if not path.exists():
        return []
    records = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            _log.warning("line %d of %s is damaged; the learning curves go without it", number, path)
    if until is not None and (not records or records[-1]["step"] != until):
        _log.warning("%s has lost its last epochs; the learning curves go without them", path)
    return records


def cut_records(path: Path, step: int) -> None:
    """Leave only the epochs that had ended at a minibatch: those that a resumed run does not repeat.

    Args:
        path: The file.
        step: Minibatches trained on at the checkpoint.
    """
    kept = [record for record in read_records(path) if record["step"] <= step]
    write_text(path, "".join(map(_line, kept)))


def _line(record: dict[str, Any]) -> str:
    return json.dumps({**record, _CHECK: _crc(record)}) + "\n"


def _crc(record: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record).encode()):08x}"


def _record(line: str) -> dict[str, Any] | None:
    """The values in a line; None if it is not what was written. Older versions wrote no checksum."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    stated = record.pop(_CHECK, None)
    misspelt = stated is None and _crc(dict(list(record.items())[:-1])) in record.values()
    return None if misspelt or stated not in (None, _crc(record)) else record
