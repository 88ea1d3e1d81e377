"""Where commands print their results."""

from __future__ import annotations

import os

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
