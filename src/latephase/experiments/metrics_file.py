"""metrics.jsonl: one line for each epoch, cut back to the checkpoint when a run resumes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from latephase.experiments.checkpoints import write_text
from latephase.experiments.errors import ExperimentError

_log = logging.getLogger(__name__)


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
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise ExperimentError(f"cannot write {path}: {error.strerror}") from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the lines; a last one that an interruption left unfinished is passed over, a damaged one with a warning.

    Args:
        path: The file.

    Returns:
        The values of each epoch, in order; empty if there is no file.
    """
    if not path.exists():
        return []
    records = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        elif number < len(lines):
            _log.warning("line %d of %s is damaged; the learning curves go without it", number, path)
    return records


def cut_records(path: Path, step: int) -> None:
    """Leave only the epochs that had ended at a minibatch: those that a resumed run does not repeat.

    Args:
        path: The file.
        step: Minibatches trained on at the checkpoint.
    """
    kept = [record for record in read_records(path) if record["step"] <= step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
