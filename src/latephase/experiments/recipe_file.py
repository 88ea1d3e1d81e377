"""Recipe files: YAML, read without harm from whatever is in them, and sealed where a run folder holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from latephase.experiments.errors import ExperimentError

# A recipe has some hundred values; anchors can make billions of a few lines.
_MOST_BYTES, _MOST_VALUES, _DEEPEST = 2**20, 10_000, 20
_SEAL = "# sha256: "


def read_yaml(path: Path, name: str) -> dict[str, Any]:
    """Read a recipe's own keys.

    Args:
        path: The file.
        name: What messages call it.

    Returns:
        Keys and values: mappings, lists, strings, numbers, True, False and None.

    Raises:
        ExperimentError: If it cannot be read, is no YAML, holds too much, or was damaged in a run folder.
    """
    try:
        if path.exists() and not path.is_file():
            raise ExperimentError(f"recipe {name} is no file")
        with open(path, "rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ExperimentError(f"cannot read recipe {name}: {error.strerror}") from error
    except ValueError as error:
        raise ExperimentError(f"cannot read recipe {name!r}: {error}") from error
    if len(raw) > _MOST_BYTES:
        raise ExperimentError(f"recipe {name} has more than {_MOST_BYTES:,} bytes; it is no recipe")
    try:
        text = raw.decode()
        _check_seal(text, name)
        values = yaml.safe_load(text)
        _check_size(values, name)
    # PyYAML lets a ValueError through for dates and numbers that cannot be.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = " ".join(str(error).split())
        raise ExperimentError(f"recipe {name} is not valid YAML: {where}") from error
    if values is None:
        raise ExperimentError(f"recipe {name} is empty; it needs keys and values, such as inherits: digits-clean")
    if not isinstance(values, dict):
        raise ExperimentError(f"recipe {name} must map keys to values, not be {type(values).__name__}")
    return values


def sealed(text: str) -> str:
    """A recipe as a run folder holds it: its checksum in a comment before it.

    Args:
        text: The YAML.

    Returns:
        The same with one more line.
    """
    return f"{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def _check_seal(text: str, name: str) -> None:
    first, _, rest = text.partition("\n")
    if first.startswith(_SEAL) and hashlib.sha256(rest.encode()).hexdigest() != first.removeprefix(_SEAL):
        raise ExperimentError(
            f"recipe {name} is not what was written with the checksum in its first line: it is damaged, or was edited; "
            "a recipe of your own is a copy without that line"
        )


def _check_size(values: Any, name: str) -> None:
    """Refuse what a few anchors make billions of values of, before anything goes through all of them."""
    left = _MOST_VALUES
    stack = [(values, 0)]
    while stack:
        value, depth = stack.pop()
        left -= 1
        if left < 0 or depth > _DEEPEST:
            raise ExperimentError(
                f"recipe {name} unfolds to more than {_MOST_VALUES:,} values, or {_DEEPEST} levels; it is no recipe"
            )
        if isinstance(value, Mapping):
            stack += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple | set):
            stack += [(part, depth + 1) for part in value]
        elif isinstance(value, str) and not _is_plain(value):
            raise ExperimentError(
                f"recipe {name} holds control characters in {ascii(value)[:60]}; a terminal would obey them"
            )


def _is_plain(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)
