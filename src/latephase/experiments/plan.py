"""Which trajectories a comparison needs, and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latephase.experiments.config import Recipe
from latephase.experiments.methods import METHODS, parse_method
from latephase.experiments.schedule import steps_at

SHARED = "shared"


@dataclass(frozen=True)
class Leg:
    """A stretch of training that one process does in one go.

    Attributes:
        recipe: The setting.
        seed: The seed.
        training: Name of the way to train; `base` for the shared leg.
        readings: Names of the readings that look at the trajectory.
        outputs: Methods whose results are read off at its end, and their folders; none for the shared leg.
        folder: Where metrics and checkpoints go.
        begin: The minibatch it starts from.
        until: The minibatch it ends at.
        forks: Minibatches at which a copy is kept for other legs.
        after: The copy that it starts from; None for the initial weights.
    """

    recipe: Recipe
    seed: int
    training: str
    readings: tuple[str, ...]
    outputs: tuple[tuple[str, Path], ...]
    folder: Path
    begin: int
    until: int
    forks: tuple[int, ...] = ()
    after: Path | None = None

    @property
    def name(self) -> str:
        """What progress and messages call it."""
        return self.training if self.outputs else SHARED


def fork_path(folder: Path, step: int) -> Path:
    """Where the shared leg keeps its copy of a minibatch.

    Args:
        folder: Folder of the shared leg.
        step: The minibatch.

    Returns:
        A checkpoint's path.
    """
    return folder / f"fork-{step}.pt"


def plan_seed(recipe: Recipe, methods: Sequence[str], seed: int, total: int, folder: Path) -> list[Leg]:
    """The legs of one seed: the part that is plain training once, then each trajectory from its copy.

    Methods that are readings of one trajectory (`base` and `swa`, `late-phase` and `late-phase+swa`) are read off
    the same one.

    Args:
        recipe: The setting.
        methods: The methods asked for.
        seed: The seed.
        total: Minibatches of the whole training.
        folder: The seed's folder.

    Returns:
        The legs; a leg that starts from a copy comes after the one that keeps it.

    Raises:
        ExperimentError: If there is no such method.
    """
    trainings: dict[str, list[str]] = {}
    for name in dict.fromkeys(methods):
        training, _ = parse_method(name)
        trainings.setdefault(training.name, []).append(name)
    starts = {name: steps_at(METHODS[name](recipe).start, total) for name in trainings}
    sharers = [start for start in starts.values() if start > 0]
    forks = tuple(sorted({start for start in sharers if start < total}))
    shared_folder = folder / SHARED
    legs = []
    if len(sharers) > 1 and forks:
        readings = _readings(methods)
        legs.append(Leg(recipe, seed, "base", readings, (), shared_folder, 0, forks[-1], forks))
    else:
        forks = ()
    for way, names in trainings.items():
        begin = max((fork for fork in forks if fork <= starts[way]), default=0)
        legs.append(
            Leg(
                recipe,
                seed,
                way,
                _readings(names),
                tuple((name, folder / name) for name in names),
                folder / way,
                begin,
                total,
                after=fork_path(shared_folder, begin) if begin else None,
            )
        )
    return legs


def _readings(methods: Sequence[str]) -> tuple[str, ...]:
    readings = [reading for _, reading in map(parse_method, methods) if reading is not None]
    return tuple(dict.fromkeys(reading.name for reading in readings))
