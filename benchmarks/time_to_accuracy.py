"""How many samples each method needs for the same accuracy on CIFAR-10: every schedule annealed to its end.

    python benchmarks/time_to_accuracy.py --preset small                  # one CPU core, about half an hour
    python benchmarks/time_to_accuracy.py --preset 94 --device cuda
    python benchmarks/time_to_accuracy.py --preset 96 --device cuda

Tuning: from the shortest schedule on, every method is trained at the same number of settings (two learning rates times
two values of what is its own) on images of which some are held out; the first length at which its best setting's mean
validation accuracy reaches the target is the method's. Then, with other seeds and nothing held out, its test accuracy
at that length, and that of all methods at the length of plain training: equal samples. Finished runs are kept in a
file, so that a command that was interrupted goes on.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from environment import save
from fast_training import PRESETS, TRAININGS, FastTrajectory, Preset, tiny
from latephase.experiments.config import Recipe
from latephase.experiments.data import load_split
from latephase.experiments.device import pick_device, prepare_process
from latephase.experiments.errors import ExperimentError
from latephase.experiments.methods import READINGS, label_of, parse_method
from latephase.experiments.methods.method import Reading
from latephase.experiments.predictor import Predictor
from latephase.experiments.statistics import paired_difference, summarise

SHARED = Path(__file__).parents[2] / "shared" / "data"
FIRST_TUNING_SEED = 1000
# What each method may choose beside the learning rate, two values each; keys that begin with `swa.` or `ema.` do not
# change the training that they are read off.
OWN: dict[str, tuple[dict[str, Any], ...]] = {
    "base": ({"training.final_lr": 0.07}, {"training.final_lr": 0.0}),
    "swa": ({"swa.start": 0.5}, {"swa.start": 0.75}),
    "ema": ({"ema.decay": 0.98}, {"ema.decay": 0.995}),
    "lookahead": ({"lookahead.every": 5}, {"lookahead.every": 10}),
    "late-phase": ({"late_phase.start": 0.5}, {"late_phase.start": 0.75}),
    "late-phase+swa": ({"late_phase.start": 0.5}, {"late_phase.start": 0.75}),
    "lr-over-k": ({"late_phase.start": 0.5}, {"late_phase.start": 0.75}),
}


@dataclass(frozen=True)
class Setting:
    """A method at one point of its grid.

    Args:
        method: its name.
        changes: keys of the recipe and their values.
    """

    method: str
    changes: tuple[tuple[str, Any], ...]

    @property
    def training(self) -> tuple[object, ...]:
        """What the trajectory depends on."""
        own = tuple(change for change in self.changes if not change[0].startswith(("swa.", "ema.")))
        return (parse_method(self.method)[0].name, *own)

    def applied(self, recipe: Recipe, epochs: int) -> Recipe:
        """The recipe of this point, for so many epochs."""
        for key, value in (*self.changes, ("training.epochs", epochs)):
            section, field = key.split(".")
            recipe = replace(recipe, **{section: replace(getattr(recipe, section), **{field: value})})
        return recipe


def grid(preset: Preset, methods: Sequence[str]) -> list[Setting]:
    """Every method at every point of its grid; each has as many."""
    first = OWN["base"][0]
    return [
        # Readings share the plain training at the final rate that is base's first.
        Setting(method, tuple({"training.lr": rate, **first, **own}.items()))
        for method in methods
        for rate in preset.rates
        for own in OWN[method]
    ]


class Runs:
    """Trains settings, and remembers what was trained.

    Args:
        preset: network and recipe.
        file: where runs are kept, one JSON object a line; None keeps them in memory.
    """

    def __init__(self, preset: Preset, file: Path | None) -> None:
        self.preset, self.file = preset, file
        self.done: dict[str, dict[str, Any]] = {}
        if file is not None and file.exists():
            records = map(json.loads, file.read_text().splitlines())
            self.done = {record.pop("run"): record for record in records}

    @staticmethod
    def key(setting: Setting, epochs: int, seed: int) -> str:
        """Name of a run."""
        return json.dumps([setting.method, dict(setting.changes), epochs, seed])

    def accuracies(self, setting: Setting, epochs: int, seeds: Sequence[int], what: str = "accuracy") -> list[float]:
        """What finished runs of a setting have reached, or another of their figures."""
        return [self.done[self.key(setting, epochs, seed)][what] for seed in seeds]

    def train(self, settings: Sequence[Setting], epochs: int, seed: int, tuning: bool) -> None:
        """Train settings that differ in what is read off alone, unless that was done before."""
        if all(self.key(setting, epochs, seed) in self.done for setting in settings):
            return
        recipe = settings[0].applied(self.preset.recipe, epochs)
        if not tuning:
            recipe = replace(recipe, data=replace(recipe.data, validation=0))
        training = parse_method(settings[0].method)[0]
        readings = {s: READINGS[kind.name](s.applied(recipe, epochs)) for s, kind in _read_off(settings)}
        split = load_split(recipe.data, seed)
        trajectory = FastTrajectory(
            self.preset, recipe, split, seed, TRAININGS[training.name](recipe), list(readings.values())
        )
        cuda = trajectory.device.type == "cuda"
        clock = time.perf_counter if cuda else time.process_time
        held_out = split.validation if tuning else split.test
        begun = clock()
        diverged = False
        try:
            trajectory.run(trajectory.total)
        except ExperimentError:
            diverged = True
        for setting in settings:
            model = readings[setting].model(trajectory) if setting in readings and not diverged else trajectory.model
            if cuda:
                torch.cuda.synchronize()
            seconds = clock() - begun
            images = trajectory.batches.plain(held_out)
            scores = Predictor(model, task=trajectory.task).score(images, trajectory.autocast())
            accuracy = 0.0 if diverged else 100 * trajectory.task.scores(scores)["accuracy"]
            self._keep(self.key(setting, epochs, seed), {"accuracy": accuracy, "seconds": seconds})
            print(f"{self.key(setting, epochs, seed)}: {accuracy:.2f}%, {seconds:.1f} s", flush=True)

    def _keep(self, key: str, record: dict[str, Any]) -> None:
        self.done[key] = record
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps({"run": key, **record}) + "\n")


def _read_off(settings: Sequence[Setting]) -> Iterator[tuple[Setting, type[Reading]]]:
    for setting in settings:
        kind = parse_method(setting.method)[1]
        if kind is not None:
            yield setting, kind


def tune(runs: Runs, methods: Sequence[str], seeds: Sequence[int], target: float) -> dict[str, dict[str, Any]]:
    """The shortest length and its best setting for every method; the longest one where none reaches the target."""
    found: dict[str, dict[str, Any]] = {method: {"reached": False, "curve": {}} for method in methods}
    for epochs in runs.preset.lengths:
        settings = [s for s in grid(runs.preset, methods) if not found[s.method]["reached"]]
        for training in dict.fromkeys(setting.training for setting in settings):
            for seed in seeds:
                runs.train([s for s in settings if s.training == training], epochs, seed, tuning=True)
        for method in dict.fromkeys(s.method for s in settings):
            own = [s for s in settings if s.method == method]
            means = {s: statistics.mean(runs.accuracies(s, epochs, seeds)) for s in own}
            best = max(own, key=lambda s: means[s])
            found[method] |= {"epochs": epochs, "setting": best, "reached": means[best] >= target}
            found[method]["curve"][epochs] = means[best]
    return found


def interpolated(curve: dict[int, float], target: float) -> float | None:
    """Epochs at which the best settings' mean accuracy crosses the target, linearly between two lengths."""
    points = list(curve.items())
    for (short, low), (long, high) in itertools.pairwise(points):
        if low < target <= high:
            return short + (long - short) * (target - low) / (high - low)
    return None


def final(runs: Runs, found: dict[str, dict[str, Any]], seeds: Sequence[int], target: float) -> list[dict[str, Any]]:
    """Test accuracy of every method at its own length, and at that of plain training; a run of its own for each."""
    reference = found["base"]["epochs"]
    # Seed by seed, so that what an interruption leaves is paired.
    for seed in seeds:
        for own in found.values():
            for epochs in dict.fromkeys((own["epochs"], reference)):
                runs.train([own["setting"]], epochs, seed, tuning=False)
    split = load_split(replace(runs.preset.recipe.data, validation=0), seeds[0])
    per_epoch = len(split.train) // runs.preset.recipe.training.batch_size
    base = runs.accuracies(found["base"]["setting"], reference, seeds)
    rows = []
    for method, own in found.items():
        minibatches = own["epochs"] * per_epoch
        equal = runs.accuracies(own["setting"], reference, seeds)
        at_own_length = runs.accuracies(own["setting"], own["epochs"], seeds)
        seconds = statistics.median(runs.accuracies(own["setting"], own["epochs"], seeds, "seconds"))
        rows.append(
            {
                "method": method,
                "label": label_of(method),
                "setting": dict(own["setting"].changes),
                "reached": own["reached"],
                "epochs": own["epochs"],
                "epochs, interpolated": interpolated(own["curve"], target),
                "samples": minibatches * runs.preset.recipe.training.batch_size,
                "seconds, median": seconds,
                "validation, by epochs": own["curve"],
                "test": summarise(at_own_length),
                "test, by seed": at_own_length,
                "test at base's epochs": summarise(equal),
                "test at base's epochs, by seed": equal,
                "minus base, at base's epochs": paired_difference(equal, base),
            }
        )
    return rows


def show(file: Path) -> None:
    """Print a result as Markdown."""
    print("| method | setting | epochs (interpolated) | samples | seconds | test, % | at base's epochs | minus base |")
    print("|---|---|---|---|---|---|---|---|")
    for row in json.loads(file.read_text())["rows"]:
        crossing, difference = row["epochs, interpolated"], row["minus base, at base's epochs"]
        epochs = f"{row['epochs']} ({crossing:.1f})" if crossing else str(row["epochs"])
        own, equal = (f"{s['mean']:.2f} ± {s['se'] or 0:.2f}" for s in (row["test"], row["test at base's epochs"]))
        interval = f"{difference['mean']:+.2f} [{difference['low'] or 0:+.2f}, {difference['high'] or 0:+.2f}]"
        print(
            f"| {row['label']} | {', '.join(f'{key} {value}' for key, value in row['setting'].items())} "
            f"| {'' if row['reached'] else 'not within '}{epochs} | {row['samples']:,} | {row['seconds, median']:.1f} "
            f"| {own} | {equal} | {'' if row['method'] == 'base' else interval} |"
        )


def main() -> None:
    """Tune, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument("--device", help="by default the preset's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train", help="CIFAR-10: a parquet file, or the folder that torchvision downloads to")
    parser.add_argument("--test", help="parquet file of the test images")
    parser.add_argument("--methods", nargs="+", choices=list(OWN), default=list(OWN))
    parser.add_argument("--target", type=float, help="accuracy in percent; by default the preset's")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tuning-seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, help="file that finished runs are kept in; an interrupted command goes on")
    parser.add_argument("--tiny", action="store_true", help="made-up images, sizes whose figures mean nothing")
    parser.add_argument("--json", help="write the result to this file")
    parser.add_argument("--show", type=Path, help="print such a file as Markdown, and train nothing")
    options = parser.parse_args()
    if options.show:
        show(options.show)
        return
    preset = PRESETS[options.preset]
    copies = [SHARED / f"cifar10_jpeg75_{part}.parquet" for part in ("train", "test")]
    if options.train is None and all(copy.exists() for copy in copies):
        # As the command would say it: a result names no folder of one machine.
        options.train, options.test = map(os.path.relpath, copies)
    data = replace(preset.recipe.data, train=options.train, test=options.test)
    compute = replace(preset.recipe.compute, threads=options.threads)
    compute = replace(compute, device=str(pick_device(options.device or compute.device)))
    options.device = compute.device
    preset = replace(preset, recipe=replace(preset.recipe, data=data, compute=compute))
    preset = tiny(preset) if options.tiny else preset
    options.target = preset.target if options.target is None else options.target
    prepare_process(compute)
    runs = Runs(preset, options.runs)
    methods = list(dict.fromkeys(["base", *options.methods]))
    tuning = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + options.tuning_seeds)
    rows = final(runs, tune(runs, methods, tuning, options.target), range(options.seeds), options.target)
    for row in rows:
        reached = f"{row['epochs']} epochs" if row["reached"] else f"not within {row['epochs']} epochs"
        test, equal = row["test"]["mean"], row["minus base, at base's epochs"]
        interval = f"[{equal['low'] or 0:+.2f}, {equal['high'] or 0:+.2f}]"
        print(f"{row['label']}: {reached}, {row['samples']} samples, test {test:.2f}%", end="; ")
        print(f"at base's epochs minus base {equal['mean']:+.2f} {interval}", flush=True)
    if options.json:
        grid_of = {
            "lengths": preset.lengths,
            "rates": preset.rates,
            "own": OWN,
            "recipe": dataclasses.asdict(preset.recipe),
        }
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        save(options.json, argparse.Namespace(**settings, **grid_of), rows)


if __name__ == "__main__":
    main()
