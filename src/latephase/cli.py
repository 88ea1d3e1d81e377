"""The command line: finds the command, imports what it needs, and turns mistakes into one line and exit code 2."""

from __future__ import annotations

import difflib
import importlib
import os
import platform
import sys
from collections.abc import Sequence

from latephase._version import __version__
from latephase.errors import LatePhaseError

# Command: the function that carries it out, the extra it needs, and what it does.
_COMMANDS = {
    "demo": ("latephase.experiments.commands:demo", "experiments", "compare all methods on digits, in two minutes"),
    "compare": ("latephase.experiments.commands:compare", "experiments", "compare methods on a recipe over seeds"),
    "tune": ("latephase.experiments.tune:main", "experiments", "try a grid of settings, judged on validation images"),
    "train": ("latephase.experiments.commands:train", "experiments", "train one method with one seed"),
    "sweep": ("latephase.experiments.sweep:main", "experiments,cluster", "compare recipes as jobs of a cluster"),
    "evaluate": ("latephase.experiments.evaluate.command:evaluate", "experiments", "what a run is worth in all"),
    "export": ("latephase.experiments.export_command:main", "experiments,export", "a run as ONNX, torch.export, ..."),
    "reproduce": ("latephase.experiments.reproduce.command:main", "experiments", "the paper's tables beside ours"),
    "nqp": ("latephase.experiments.theory.command:main", "experiments", "the theory's figures and tables"),
    "nqp-real": ("latephase.experiments.real_network.command:main", "experiments", "the theory beside a real network"),
    "recipes": ("latephase.experiments.listing:main", "experiments", "list the recipes and what they cost"),
}


# What several processes can do together.
_TOGETHER = ("train", "compare", "demo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command and its arguments; by default those of the process. `--version` names the version alone;
            `version` adds those of Python and PyTorch, the device and the system, for a report of a bug.

    Returns:
        The exit code: 0, 2 for a mistake that a line on stderr names, or 130 after an interruption.

    Example:
        >>> main(["--version"])
        latephase 0.1.0
        0
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0
    if arguments[0] == "--version":
        sys.stdout.write(f"latephase {__version__}\n")
        return 0
    if arguments == ["version"]:
        sys.stdout.write(_versions())
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in _COMMANDS:
        near = difflib.get_close_matches(name, _COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_COMMANDS)}"
        return _fail(f"unknown command {name!r}; {hint}")
    if name not in _TOGETHER and "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _fail(f"{name} is for one process; under torchrun there are {', '.join(_TOGETHER)}")
    where, extra, _ = _COMMANDS[name]
    try:
        return _run(where, rest)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("latephase"):
            raise
        return _fail(f"{name} needs {error.name}; install it with: pip install 'latephase[{extra}]'")
    except LatePhaseError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt:
        sys.stderr.write("latephase: interrupted; the same command goes on from the last checkpoint\n")
        return 130


def _run(where: str, arguments: list[str]) -> int:
    module, function = where.split(":")
    importlib.import_module("latephase.experiments.console").say_warnings()
    code: int = getattr(importlib.import_module(module), function)(arguments)
    return code


def _fail(message: str) -> int:
    # A terminal would obey what else is in a name, or in a damaged file that an error quotes.
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    sys.stderr.write(f"latephase: error: {plain}\n")
    return 2


def _versions() -> str:
    """One line for a report of a bug; torch is imported here, since nothing else in this file needs it."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    system = f"{platform.system()} {platform.machine()}"
    return (
        f"latephase {__version__}, Python {platform.python_version()}, torch {torch.__version__}, {device}, {system}\n"
    )


def _usage() -> str:
    lines = [f"  {name:11}{what}" for name, (_, _, what) in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: latephase COMMAND [ARGUMENTS]",
            "",
            *lines,
            "",
            "latephase COMMAND --help says more; latephase version says which versions run, for a report.",
            "",
        ]
    )
