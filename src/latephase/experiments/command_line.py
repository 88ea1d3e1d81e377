"""What the commands' own command lines have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from latephase.experiments.errors import ExperimentError


def help_is_asked(arguments: Sequence[str]) -> bool:
    """Whether a command is asked what it does.

    Args:
        arguments: What follows the command's name.

    Returns:
        True if `-h` or `--help` is among them.
    """
    return not {"-h", "--help"}.isdisjoint(arguments)


def print_usage(console: Console, usage: str) -> None:
    """Print the one line that says how a command is called.

    Args:
        console: Where to.
        usage: The line.
    """
    console.print(Text(f"usage: {usage}"), soft_wrap=True)


def option_parser(**settings: Any) -> argparse.ArgumentParser:
    """A parser for a command's own options, which leaves those of a recipe alone and ends no process.

    Args:
        settings: Further arguments of `argparse.ArgumentParser`.

    Returns:
        The parser, without options.
    """
    return argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False, **settings)


def parse_known(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse a command's own options.

    Args:
        parser: What `option_parser` returned.
        arguments: What follows the command's name.

    Returns:
        The options, and what the parser does not know.

    Raises:
        ExperimentError: If an option's value is not one.
    """
    try:
        return parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ExperimentError(str(error)) from error
