"""What became of a damaged file: refused, replaced and said, harmless, or a failure."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latephase.checked_files import digest
from latephase.errors import LatePhaseError

REFUSED, REPLACED, HARMLESS = "refused", "previous used, and said", "harmless"
ABROAD, UNDETECTABLE = "refused by the reader of torch or a trainer", "not detectable"
FAILURES = ("loaded something else", "traceback", "error without the file", "crash", "hang")
"""Whatever begins with one of these is a failure."""


def of(
    read: Callable[[], Any],
    good: str,
    others: set[str],
    name: str,
    folder: Path | None = None,
    *,
    checked: bool = True,
    abroad: bool = False,
) -> str:
    """Read a file and say what came of it.

    Args:
        read: reads it.
        good: the digest of what it held before it was damaged.
        others: digests of what may take its place, if that is said in a warning.
        name: what an error has to name: the file,
        folder: or this folder, where several files are one checkpoint.
        checked: whether anything in the file could tell that it is damaged.
        abroad: whether a reader that is not the library's comes first.

    Returns:
        The outcome; for a failure with what happened.
    """
    said: list[str] = []
    handler = _Listening(said)
    logger = logging.getLogger("latephase")
    logger.addHandler(handler)
    try:
        found = digest(read())
    except LatePhaseError as error:
        return (
            REFUSED if any(part in str(error) for part in (name, str(folder))) else f"error without the file: {error}"
        )
    except BaseException as error:  # that of torch.distributed.checkpoint is no Exception
        return ABROAD if abroad else f"traceback: {type(error).__name__}: {' '.join(str(error).split())[:150]}"
    finally:
        logger.removeHandler(handler)
    if found == good:
        return HARMLESS
    if found in others and any(name in text for text in said):
        return REPLACED
    return "loaded something else" if checked else UNDETECTABLE


class _Listening(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
