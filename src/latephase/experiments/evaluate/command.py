"""`latephase evaluate`: what a trained run is worth beyond its accuracy."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from latephase.experiments.command_line import help_is_asked, option_parser, parse_known
from latephase.experiments.device import describe_device, pick_device
from latephase.experiments.errors import ExperimentError, unknown
from latephase.experiments.evaluate.measure import measure, steps_of
from latephase.experiments.evaluate.options import Options, add_options, options_from
from latephase.experiments.evaluate.target import Group, Run, find_runs
from latephase.experiments.json_file import write_json
from latephase.experiments.origin import commit, versions
from latephase.experiments.recipe import load_recipe, recipe_from_dict, recipe_parser

_USAGE = "latephase evaluate RUN_OR_SAFETENSORS [--ood SET ...] [--corruptions SOURCE] [--flatness] [--landscape]"


def evaluate(arguments: list[str]) -> int:
    """`latephase evaluate RUN_OR_SAFETENSORS`: measure, print a table, write the report.

    Args:
        arguments: What follows the command's name.

    Returns:
        The exit code.

    Raises:
        LatePhaseError: If an argument, a run or a file is not what it should be.
    """
    begun = time.perf_counter()
    parser = _parser()
    if help_is_asked(arguments):
        parser.print_help()
        return 0
    parsed, overrides = _parse(parser, arguments)
    options = options_from(parsed)
    groups = _groups(parsed, overrides, options)
    folder = parsed.output or _output(parsed.target)
    command = shlex.join(["latephase", "evaluate", *arguments])
    with _Bar(sum(steps_of(group, options) for group in groups)) as bar:
        settings = [measure(group, options, bar.advance) for group in groups]
    device = describe_device(pick_device(groups[0].runs[0].recipe.compute.device))
    results = _results(settings, options, str(parsed.target), command, device, time.perf_counter() - begun)
    write_json(folder / "evaluation.json", results)
    from latephase.experiments.evaluate.page import write_report  # matplotlib takes its time to import
    from latephase.experiments.evaluate.terminal import print_evaluation

    write_report(folder / "evaluation.json", folder / "evaluation.html")
    print_evaluation(results, folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = option_parser(
        prog="latephase evaluate",
        usage=_USAGE,
        description="RUN is the folder of a latephase train, a method's folder in a latephase compare, or a whole one. "
        "SAFETENSORS are plain weights; they need --model and --data, or --recipe.",
    )
    parser.add_argument("target", metavar="RUN_OR_SAFETENSORS", type=Path, nargs="?")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where the report goes; by default into the run")
    parser.add_argument("--data", metavar="NAME", help="the data set, as --data.name; --data.train, --data.test ... "
                        "are the fields of a recipe's data")  # fmt: skip
    parser.add_argument("--model", metavar="NAME", help="the model of a safetensors file, as --model.name")
    parser.add_argument("--recipe", metavar="NAME", help="a recipe with the model and data of a safetensors file")
    add_options(parser)
    return parser


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parsed, rest = parse_known(parser, arguments)
    if parsed.target is None:
        raise ExperimentError("latephase evaluate needs a run folder or a .safetensors file first")
    stray = next((text for text in rest if text.startswith("--") and "." not in text.split("=")[0]), None)
    if stray is not None:
        known = [option for action in parser._actions for option in action.option_strings]
        raise unknown("option", stray.split("=")[0], known)
    for section in ("data", "model"):
        if getattr(parsed, section) is not None:
            rest += [f"--{section}.name={getattr(parsed, section)}"]
    return parsed, rest


def _groups(parsed: argparse.Namespace, overrides: Sequence[str], options: Options) -> list[Group]:
    path: Path = parsed.target
    if path.suffix == ".safetensors":
        return [_file(path, parsed, overrides, options)]
    if parsed.recipe is not None:
        raise ExperimentError(f"--recipe is for a .safetensors file; the run {path} has its own")
    return find_runs(path, overrides, options.methods, options.seeds)


def _file(path: Path, parsed: argparse.Namespace, overrides: Sequence[str], options: Options) -> Group:
    """A file of plain weights, as a run of plain training."""
    if not path.is_file():
        raise ExperimentError(f"there is no file {path}")
    if options.methods or options.seeds:
        raise ExperimentError(f"--methods and --seeds choose among the runs of a comparison; {path} is one model")
    named = {option.removeprefix("--").split("=")[0] for option in overrides}
    if parsed.recipe is not None:
        recipe = load_recipe(parsed.recipe, overrides)
    elif {"data.name", "model.name"} <= named:
        try:
            recipe = recipe_from_dict(recipe_parser("evaluate").parse_args(list(overrides)).as_dict())
        except ArgumentError as error:
            raise ExperimentError(" ".join(str(error).split())) from error
    else:
        raise ExperimentError(f"{path} holds weights only: name their --model and --data, or a --recipe that has both")
    return Group(path.stem, (Run(recipe, "base", recipe.seed, path),))


def _output(target: Path) -> Path:
    return target.with_name(f"{target.stem}-evaluation") if target.suffix == ".safetensors" else target / "evaluation"


def _results(
    settings: list[dict[str, Any]], options: Options, target: str, command: str, device: str, seconds: float
) -> dict[str, Any]:
    chosen = dataclasses.asdict(options)
    return {
        "kind": "evaluate",
        "target": target,
        "command": command,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device,
        "seconds": seconds,
        "versions": versions(),
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in chosen.items()},
        "settings": settings,
    }


class _Bar:
    """How far the evaluation is, on a terminal; nothing elsewhere."""

    def __init__(self, steps: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn(compact=True))
        self._progress = Progress(*columns, *times, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("reading", total=steps)

    def advance(self, what: str, steps: int) -> None:
        """Move the bar, and say what is done next."""
        if what:
            self._progress.update(self._task, description=what)
        self._progress.advance(self._task, steps)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
