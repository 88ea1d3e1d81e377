"""What goes wrong for a reason the user can mend: one line, no traceback, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from latephase.errors import LatePhaseError


class ExperimentError(LatePhaseError):
    """A mistake in a recipe, an option or a file; the message names it, its value and what would work."""


def unknown(kind: str, name: str, known: Iterable[str]) -> ExperimentError:
    """The error for a name that does not exist, with the nearest ones that do.

    Args:
        kind: What the name was meant to be, such as `"method"`.
        name: The name that was given.
        known: The names that exist.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> str(unknown("method", "late-fase", ["base", "late-phase"]))
        "unknown method 'late-fase'; did you mean late-phase?"
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
    return ExperimentError(f"unknown {kind} {name!r}; {hint}")
