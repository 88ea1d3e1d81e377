"""results.json and its like: JSON with its own checksum, so that a report shows what was measured or nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from latephase.experiments.checkpoints import write_text
from latephase.experiments.errors import ExperimentError

_KEY = "sha256"
# Far more than any study writes.
_MOST_BYTES = 2**28


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write plain values; the last of them is the checksum of the others.

    Args:
        path: The file.
        content: The values.

    Raises:
        ExperimentError: If it cannot be written.
    """
    write_text(path, json.dumps({**content, _KEY: _checksum(content)}, indent=1) + "\n")


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """Read a mapping.

    Args:
        path: The file.
        advice: What to do if it cannot be used.

    Returns:
        Its values, without the checksum.

    Raises:
        ExperimentError: If it cannot be read, or is not what its checksum was made of; a file without one is taken as
            it is.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ExperimentError(f"{path} has more than {_MOST_BYTES:,} bytes; {advice}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ExperimentError(f"cannot read {path}: {reason}; {advice}") from error
    if not isinstance(content, dict):
        raise ExperimentError(f"cannot read {path}: it holds no mapping but {type(content).__name__}; {advice}")
    stated = content.pop(_KEY, None)
    if stated is not None and stated != _checksum(content):
        raise ExperimentError(f"{path} is not what its checksum was made of: it is damaged, or was edited; {advice}")
    if stated is None and _is_misspelt(content):
        raise ExperimentError(f"{path} is damaged; {advice}")
    return content


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _is_misspelt(content: dict[str, Any]) -> bool:
    """Whether the checksum is there under a damaged name."""
    last = list(content.items())[-1:]
    return any(value == _checksum({k: v for k, v in content.items() if k != key}) for key, value in last)
