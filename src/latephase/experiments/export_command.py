"""`latephase export`: a trained run in the formats that deployment tools take, compared with what was trained."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from latephase.experiments.checkpoints import write_text
from latephase.experiments.command_line import help_is_asked, option_parser, parse_known, print_usage
from latephase.experiments.console import results_console
from latephase.experiments.errors import ExperimentError, unknown
from latephase.experiments.evaluate.subject import load_subject
from latephase.experiments.evaluate.target import Run, find_runs
from latephase.experiments.export_model import HandOver, hand_over
from latephase.export import FORMATS, Format, write

_USAGE = (
    "latephase export RUN --format FORMAT [--what averaged|ensemble|member:K] [--batch N] [--length N] "
    "[--method NAME] [--seed N] [--output FILE] [--compute.KEY VALUE ...]"
)


def main(arguments: list[str]) -> int:
    """Write one run's model to a file, read it back, and print how its outputs compare.

    Args:
        arguments: What follows the command's name.

    Returns:
        The exit code.

    Raises:
        LatePhaseError: If an argument or the run is not what it should be, or the format cannot hold the model.
    """
    console = results_console()
    if help_is_asked(arguments):
        _help(console)
        return 0
    options, overrides = _options(arguments)
    chosen = FORMATS[options.format]
    run, alone = _run(options, overrides)
    path = options.output or _output(options, run, alone, chosen)
    if path.exists():
        raise ExperimentError(f"{path} exists; choose another --output or remove it")
    # The packages of the format first: bringing the run back may take long.
    chosen.load()
    made = hand_over(load_subject(run), options.what, options.batch, options.length)
    sidecar = path.with_name(f"{path.name}.json")
    # Of a file that was removed: at no time may it stand beside another.
    sidecar.unlink(missing_ok=True)
    written = write(made.model, made.example, path, chosen.name, check=made.check, dynamic=made.dynamic)
    facts = {
        "command": shlex.join(["latephase", "export", *arguments]),
        **made.facts,
        "format": chosen.name,
        "file": written.to_dict() | {"path": path.name},
        "verification": made.verification.to_dict() if made.verification else None,
        "source": asdict(made.source),
    }
    write_text(sidecar, json.dumps(facts, indent=1) + "\n")
    _print(console, made, chosen, str(written), sidecar)
    return 0


def _print(console: Console, made: HandOver, chosen: Format, written: str, sidecar: Path) -> None:
    lines = [made.title, *(str(made.verification).splitlines() if made.verification else [])]
    lines += [
        f"outputs as training left them and of what is handed over differ by {made.source}",
        f"{chosen.name}: {chosen.what}",
        f"{written}",
        f"inputs, outputs and these numbers: {sidecar}",
    ]
    for i, line in enumerate(lines):
        console.print(Text(line), style="bold" if i == 0 else "default", soft_wrap=True)


def _help(console: Console) -> None:
    print_usage(console, _USAGE)
    console.print()
    for name, each in FORMATS.items():
        console.print(Text(f"  {name:12} {each.what}"), soft_wrap=True)
    for line in (
        "",
        "RUN is the folder of a latephase train, or of a latephase compare with --method and --seed.",
        "--what averaged (the default) is the one model of the method; ensemble gives the outputs of all members,",
        "(K, N, ...), in one graph; member:K is one of them. --batch N makes a graph for N samples alone, in which",
        "each operator runs once for all members; --length N makes one of a recurrent model for N characters. FILE is",
        "by default RUN/export/averaged.onnx and the like.",
    ):
        console.print(Text(line), soft_wrap=True)


def _options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = option_parser()
    parser.add_argument("target", type=Path, nargs="?")
    for name in ("format", "method"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--what", default="averaged")
    for name in ("seed", "batch", "length"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--output", type=Path)
    options, overrides = parse_known(parser, arguments)
    if options.target is None:
        raise ExperimentError("latephase export needs a run folder first")
    if options.format is None:
        raise ExperimentError(f"latephase export needs a --format; there are {', '.join(FORMATS)}")
    if options.format not in FORMATS:
        raise unknown("format", options.format, FORMATS)
    for name in ("batch", "length"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ExperimentError(f"--{name} {value} is not valid; it takes a whole number from 1")
    if not re.fullmatch(r"averaged|ensemble|member:\d+", options.what):
        raise unknown("--what", options.what, ["averaged", "ensemble", "member:0"])
    return options, overrides


def _run(options: argparse.Namespace, overrides: list[str]) -> tuple[Run, bool]:
    """The one run that is meant, and whether it is the only one in its folder."""
    methods = () if options.method is None else (options.method,)
    seeds = () if options.seed is None else (options.seed,)
    groups = find_runs(options.target, overrides, methods, seeds)
    if len(groups) > 1:
        names = ", ".join(str(options.target / group.name) for group in groups)
        raise ExperimentError(f"{options.target} holds several settings; name one of {names}")
    runs = groups[0].runs
    if len(runs) > 1:
        named = f"methods {', '.join(groups[0].methods)}; seeds {', '.join(map(str, groups[0].seeds))}"
        raise ExperimentError(f"{options.target} holds {len(runs)} runs ({named}); name one with --method and --seed")
    return runs[0], not methods and not seeds


def _output(options: argparse.Namespace, run: Run, alone: bool, chosen: Format) -> Path:
    name = options.what.replace(":", "-")
    if not alone:
        name = f"{run.method}-seed-{run.seed}-{name}"
    folder: Path = options.target / "export"
    return folder / f"{name}{chosen.suffix}"
