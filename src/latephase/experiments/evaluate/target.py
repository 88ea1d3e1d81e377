"""What is evaluated: which trained runs a path on the disk stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latephase.experiments.config import Recipe
from latephase.experiments.errors import ExperimentError, unknown
from latephase.experiments.methods import parse_method
from latephase.experiments.recipe import load_recipe

# What may differ from the training: where the files lie and where the arithmetic is done, but not how data are split,
# or images that were trained on would be among those that are held out.
_MAY_CHANGE = ("data.name", "data.train", "data.test", "data.image_size", "data.resize", "data.resident")
_MAY_CHANGE_SECTION = "compute."


@dataclass(frozen=True)
class Run:
    """One trained model.

    Attributes:
        recipe: Its setting.
        method: Its method.
        seed: Its seed.
        weights: The file that holds it: a checkpoint, or plain weights.
    """

    recipe: Recipe
    method: str
    seed: int
    weights: Path


@dataclass(frozen=True)
class Group:
    """The runs of one setting.

    Attributes:
        name: The setting's name.
        runs: Its runs, for each method and each seed one.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def methods(self) -> list[str]:
        """The methods, in their order."""
        return list(dict.fromkeys(run.method for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        """The seeds, in their order."""
        return list(dict.fromkeys(run.seed for run in self.runs))


def find_runs(
    path: Path, overrides: Sequence[str], methods: Sequence[str] = (), seeds: Sequence[int] = ()
) -> list[Group]:
    """Read what a folder of `latephase train` or `latephase compare` holds.

    Args:
        path: The folder of one training, a method's folder in a comparison, a setting's folder or the whole one.
        overrides: Options for data files and device.
        methods: The methods to take; empty takes all.
        seeds: The seeds to take; empty takes all.

    Returns:
        The runs, by setting.

    Raises:
        ExperimentError: If the folder holds no finished run, or not those that are asked for.
    """
    check_overrides(overrides)
    if not path.exists():
        raise ExperimentError(f"there is no run {path}; it takes a folder of latephase train or compare")
    if (path / "result.json").exists() and (path / "recipe.yaml").exists():
        recipe = load_recipe(str(path / "recipe.yaml"), overrides)
        _only("method", methods, [recipe.method], path)
        _only("seed", seeds, [recipe.seed], path)
        return [Group(path.name, (_run(recipe, recipe.method, recipe.seed, path, path),))]
    inside = re.fullmatch(r"seed-(\d+)", path.parent.name)
    if inside and (path / "result.json").exists():
        setting = path.parent.parent
        recipe = load_recipe(str(setting / "recipe.yaml"), overrides)
        _only("method", methods, [path.name], path)
        _only("seed", seeds, [int(inside[1])], path)
        run = _in_comparison(recipe, path.name, int(inside[1]), path.parent)
        return [Group(setting.name, (run,))]
    settings = [path] if (path / "recipe.yaml").exists() else sorted(p.parent for p in path.glob("*/recipe.yaml"))
    if not settings:
        raise ExperimentError(
            f"{path} holds no run; it takes the folder of a latephase train or compare that came to its end"
        )
    return [_setting(folder, overrides, methods, seeds) for folder in settings]


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse options that would make other data or another training of a run.

    Args:
        overrides: Options such as `--data.test=new.parquet`.

    Raises:
        ExperimentError: If there is one.
    """
    for option in overrides:
        key = option.removeprefix("--").split("=")[0]
        if option.startswith("--") and key not in _MAY_CHANGE and not key.startswith(_MAY_CHANGE_SECTION):
            raise ExperimentError(
                f"--{key} cannot be changed after the training: a run is evaluated with its own recipe; what may "
                f"change is {', '.join(_MAY_CHANGE)} and {_MAY_CHANGE_SECTION}*"
            )


def _setting(folder: Path, overrides: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> Group:
    recipe = load_recipe(str(folder / "recipe.yaml"), overrides)
    done: dict[int, list[str]] = {}
    for result in folder.glob("seed-*/*/result.json"):
        seed = int(result.parent.parent.name.removeprefix("seed-"))
        done.setdefault(seed, []).append(result.parent.name)
    if not done:
        raise ExperimentError(f"{folder} holds no finished run; run latephase compare to its end first")
    _only("seed", seeds, sorted(done), folder)
    chosen = sorted(seeds or done)
    there = set.union(*(set(done[seed]) for seed in chosen))
    # The recipe's order; what an earlier comparison in this folder left behind comes after it.
    known = [m for m in recipe.methods if m in there] + sorted(there - set(recipe.methods))
    _only("method", methods, known, folder)
    names = list(methods or known)
    for seed in chosen:
        missing = [method for method in names if method not in done[seed]]
        if missing:
            raise ExperimentError(
                f"{folder / f'seed-{seed}'} has no result of {', '.join(missing)}; run latephase compare to its "
                "end, or choose with --methods and --seeds"
            )
    runs = [_in_comparison(recipe, method, seed, folder / f"seed-{seed}") for seed in chosen for method in names]
    return Group(folder.name, tuple(runs))


def _only(what: str, asked: Sequence[object], there: Sequence[object], folder: Path) -> None:
    for value in asked:
        if value not in there:
            raise unknown(f"{what} in {folder}:", str(value), [str(name) for name in there])


def _in_comparison(recipe: Recipe, method: str, seed: int, folder: Path) -> Run:
    training, _ = parse_method(method)
    return _run(recipe, method, seed, folder / training.name, folder / method)


def _run(recipe: Recipe, method: str, seed: int, leg: Path, own: Path) -> Run:
    parse_method(method)
    checkpoint = leg / "checkpoint.pt"
    if not checkpoint.exists():
        raise ExperimentError(
            f"{checkpoint} is missing, which holds {method} and its members; {own / 'model.safetensors'} alone can be "
            "evaluated with --model and its data"
        )
    return Run(recipe, method, seed, checkpoint)
