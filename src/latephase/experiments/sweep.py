"""`latephase sweep`: the trainings of a comparison as jobs of a SLURM cluster, or one by one on this machine."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from rich.console import Console
from rich.table import Table
from rich.text import Text

from latephase.experiments.command_line import help_is_asked, option_parser, parse_known, print_usage
from latephase.experiments.commands import recipes_first, setting_name
from latephase.experiments.config import Recipe
from latephase.experiments.console import results_console
from latephase.experiments.errors import ExperimentError, unknown
from latephase.experiments.recipe import load_recipe, scaled
from latephase.experiments.results import Setting
from latephase.experiments.study import claim_all, plan_all, train_seed, unfinished

_USAGE = (
    "latephase sweep RECIPE [RECIPE ...] [--launcher slurm|local] [--dry-run] [--output FOLDER] [--scale FACTOR] "
    "[--parallel N] [--partition NAME] [--hours H] [--cpus N] [--gpus N] [--memory GB] [--slurm KEY=VALUE ...] "
    "[--section.key VALUE ...]"
)
LAUNCHERS = ("slurm", "local")


@dataclass(frozen=True)
class Job:
    """One seed of one setting: what one job trains, one method after the other.

    Attributes:
        name: The setting.
        recipe: Its recipe.
        seed: The seed.
        folder: The setting's folder, which all jobs must see.
        trajectories: How many are to be trained.
        minibatches: In how many minibatches.
    """

    name: str
    recipe: Recipe
    seed: int
    folder: Path
    trajectories: int
    minibatches: int

    def __call__(self) -> int:
        """Train what is missing; a job that was interrupted goes on when it is started again."""
        return train_seed(self.name, self.recipe, self.seed, self.folder)

    def checkpoint(self) -> Any:
        """Asked for when the cluster interrupts the job: the job to be put into the queue again."""
        return submitit.helpers.DelayedSubmission(self)


def main(arguments: list[str]) -> int:
    """Hand every seed of every recipe to a cluster as a job; `latephase compare` then gathers and reports.

    Args:
        arguments: What follows the command's name.

    Returns:
        The exit code.

    Raises:
        ExperimentError: If an argument, a recipe, a file or the launcher is not what it should be.
    """
    console = results_console()
    if help_is_asked(arguments):
        print_usage(console, _USAGE)
        return 0
    names, options, overrides = _options(arguments)
    recipes = {setting_name(name, options.scale): scaled(load_recipe(name, overrides), options.scale) for name in names}
    folder = (options.output or Path("runs") / "-and-".join(recipes)).absolute()
    jobs = jobs_of(plan_all(recipes, folder) if options.dry_run else claim_all(recipes, folder))
    resources = _resources(options)
    console.print(_table(jobs, folder, options.launcher, resources))
    gather = ["latephase", "compare", *names, "--output", str(folder), *overrides]
    gather += [] if options.scale is None else ["--scale", f"{options.scale:g}"]
    if options.dry_run:
        console.print(Text("a dry run: nothing was submitted and nothing written"))
        return 0
    if jobs:
        _submit(jobs, folder / "jobs", options, resources, console)
    console.print(Text("when all jobs are done this has nothing left to train, and writes the report:"))
    console.print(Text(f"  {shlex.join(gather)}", style="bold"), soft_wrap=True)
    return 0


def jobs_of(settings: list[Setting]) -> list[Job]:
    """The jobs of a study.

    Args:
        settings: What is to be trained.

    Returns:
        One for each setting and seed of which something is missing.
    """
    jobs = []
    for setting in settings:
        for seed in setting.seeds:
            legs = [leg for leg in setting.legs if leg.seed == seed]
            missing = [legs[i] for i in unfinished(legs)]
            if missing:
                minibatches = sum(leg.until - leg.begin for leg in missing)
                jobs.append(Job(setting.name, setting.recipe, seed, setting.folder, len(missing), minibatches))
    return jobs


def _options(arguments: list[str]) -> tuple[list[str], argparse.Namespace, list[str]]:
    names, rest = recipes_first("sweep", arguments)
    parser = option_parser()
    parser.add_argument("--launcher", default="slurm")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--partition")
    parser.add_argument("--slurm", action="append", default=[])
    for name, kind in (("scale", float), ("parallel", int), ("hours", float), ("cpus", int), ("gpus", int)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--memory", type=float)
    options, overrides = parse_known(parser, rest)
    if options.launcher not in LAUNCHERS:
        raise unknown("launcher", options.launcher, LAUNCHERS)
    for name in ("parallel", "hours", "cpus", "memory"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ExperimentError(f"--{name} {value:g} is not valid; it takes a number above 0")
    return names, options, overrides


def _resources(options: argparse.Namespace) -> dict[str, Any]:
    """What every job asks of the cluster, in submitit's words."""
    asked = {
        "slurm_partition": options.partition,
        "timeout_min": None if options.hours is None else max(1, round(60 * options.hours)),
        "cpus_per_task": options.cpus,
        "gpus_per_node": options.gpus,
        "mem_gb": options.memory,
        "slurm_array_parallelism": options.parallel,
    }
    further = {}
    for pair in options.slurm:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise ExperimentError(f"--slurm {pair} is not valid; it takes KEY=VALUE, such as --slurm account=vision")
        further[key] = value
    known = {key: value for key, value in asked.items() if value is not None}
    return known | ({"slurm_additional_parameters": further} if further else {})


def _submit(
    jobs: list[Job], folder: Path, options: argparse.Namespace, resources: dict[str, Any], console: Console
) -> None:
    """Hand the jobs over; on this machine wait for them, a few at a time."""
    try:
        executor = submitit.AutoExecutor(folder, cluster=options.launcher)
    except RuntimeError as error:
        raise ExperimentError(
            f"--launcher {options.launcher}: {error} Start it where sbatch is, or use --launcher local"
        ) from error
    if options.launcher == "slurm":
        executor.update_parameters(name="latephase", **resources)
        with executor.batch():
            submitted = [executor.submit(job) for job in jobs]
        console.print(
            Text(f"submitted: {', '.join(job.job_id for job in submitted)}; logs in {folder}"), soft_wrap=True
        )
        return
    executor.update_parameters(name="latephase", timeout_min=resources.get("timeout_min", 60 * 24 * 7))
    at_once = options.parallel or 1
    for first in range(0, len(jobs), at_once):
        running = [executor.submit(job) for job in jobs[first : first + at_once]]
        for job, run in zip(jobs[first:], running, strict=False):
            try:
                trained = run.result()
            except Exception as error:
                # submitit wraps what a job raises, with its traceback; the last line says what it was.
                reason = str(error).strip().splitlines()[-1]
                raise ExperimentError(f"{job.name}, seed {job.seed}: {reason}; logs in {folder}") from error
            console.print(Text(f"{job.name}, seed {job.seed}: {trained} trajectories trained"))


def _table(jobs: list[Job], folder: Path, launcher: str, resources: dict[str, Any]) -> Table:
    asked = ", ".join(f"{key}={value}" for key, value in resources.items()) or "nothing in particular"
    table = Table(
        "setting", "seed", "trajectories", "minibatches", title=f"{len(jobs)} jobs into {folder}", title_justify="left"
    )
    table.caption, table.caption_justify = f"launcher {launcher}, each job asks for: {asked}", "left"
    for column in table.columns[1:]:
        column.justify = "right"
    for job in jobs:
        table.add_row(job.name, str(job.seed), str(job.trajectories), f"{job.minibatches:,}")
    return table
