"""Where commands print their results."""

from __future__ import annotations

import logging
import os
import sys

from rich.console import Console


def results_console(width: int = 120) -> Console:
    """The console of a command's results, on stdout.

    Args:
        width: Columns where stdout is no terminal and nobody says how wide it is.

    Returns:
        A console as wide as the terminal or as `COLUMNS`, else of that width; numbers are not coloured.
    """
    console = Console(highlight=False)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=width)


class _OnStderr(logging.Handler):
    """One line for each warning, to whatever stderr is at the time: progress bars make room for it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"latephase: {record.levelname.lower()}: {' '.join(record.getMessage().split())}\n")


def say_warnings() -> None:
    """Let the library's warnings appear on stderr, as a command's errors do."""
    logger = logging.getLogger("latephase")
    if not any(type(handler).__name__ == _OnStderr.__name__ for handler in logger.handlers):
        logger.addHandler(_OnStderr(logging.WARNING))
