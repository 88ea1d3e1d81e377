"""What every result of an evaluation can do: become plain values for a results file."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


class Result:
    """Base of the frozen dataclasses that hold results."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as numbers, strings, lists and dicts, ready for JSON.

        Returns:
            One entry for each field, in order; tuples become lists.
        """
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    return value
