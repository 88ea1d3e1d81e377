"""Train one leg: from its start or from where it was interrupted, with checkpoints on the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from latephase._version import __version__
from latephase.experiments.checkpoints import is_whole, load_checkpoint, save_checkpoint
from latephase.experiments.checksums import damaged
from latephase.experiments.config import Data
from latephase.experiments.data import Split
from latephase.experiments.data_parallel import DataParallel
from latephase.experiments.device import prepare_process
from latephase.experiments.errors import ExperimentError
from latephase.experiments.methods import METHODS, READINGS
from latephase.experiments.metrics_file import append_record, cut_records
from latephase.experiments.outcome import save_outcome
from latephase.experiments.plan import Leg, fork_path
from latephase.experiments.recipe import identity, recipe_from_dict, to_yaml
from latephase.experiments.run_folder import difference
from latephase.experiments.tasks import load_data
from latephase.experiments.text import Corpus
from latephase.experiments.trajectory import Trajectory
from latephase.whole_files import flush, remove_leftovers

_log = logging.getLogger(__name__)


def is_done(leg: Leg) -> bool:
    """Whether everything that a leg is for is on the disk, undamaged.

    Args:
        leg: The leg.

    Returns:
        True if all its results, or all its copies, are there.
    """
    if leg.outputs:
        return all((folder / "result.json").exists() and not damaged(folder) for _, folder in leg.outputs)
    return all(is_whole(fork_path(leg.folder, step)) for step in leg.forks)


def run_leg(leg: Leg, on_step: Callable[[int], None] | None = None, parallel: DataParallel | None = None) -> None:
    """Train a leg to its end, and save what it is for.

    Args:
        leg: The leg; one that is done already returns at once.
        on_step: Called after every minibatch with the number of minibatches so far.
        parallel: The processes that train it together; the first one writes.

    Raises:
        ExperimentError: If the loss is not finite, or a file cannot be read or written.
    """
    if is_done(leg):
        return
    writes = parallel is None or parallel.rank == 0
    if writes:
        _say_what_is_damaged(leg)
    prepare_process(leg.recipe.compute)
    trajectory = Trajectory(
        leg.recipe,
        _data(leg.recipe.data, leg.seed),
        leg.seed,
        METHODS[leg.training](leg.recipe),
        [READINGS[name](leg.recipe) for name in leg.readings],
        parallel,
    )
    state = _state_to_go_on_from(leg, trajectory)
    if state is not None:
        trajectory.load_state_dict(state)
    before = _seconds_at_begin(leg)
    metrics, checkpoint = leg.folder / "metrics.jsonl", leg.folder / "checkpoint.pt"
    if writes:
        remove_leftovers(leg.folder)
        cut_records(metrics, trajectory.step)
    saved = time.monotonic()

    def save(path: Path) -> None:
        # What a checkpoint is past is not repeated: the epochs before it have to be on the disk first.
        flush(metrics)
        save_checkpoint(path, trajectory.state_dict() | {"run": _origin(leg)})

    def after_step(step: int) -> None:
        nonlocal saved
        if writes and time.monotonic() - saved > 60 * leg.recipe.checkpoint_minutes:
            trajectory.check()
            save(checkpoint)
            saved = time.monotonic()
        if on_step is not None:
            on_step(step)

    def after_epoch(record: dict[str, Any]) -> None:
        if writes:
            append_record(metrics, record)

    for stop in sorted({*leg.forks, leg.until}):
        if trajectory.step > stop:
            continue
        trajectory.run(stop, after_epoch, after_step)
        trajectory.check()
        # A copy that is there already is not written again: a kill in the midst of that would leave an unfinished file
        # in the folder of a leg that is done, where nobody looks any more.
        if stop in leg.forks and writes and not is_whole(fork_path(leg.folder, stop)):
            save(fork_path(leg.folder, stop))
    if not writes:
        return
    if leg.outputs:
        save(checkpoint)
    for method, folder in leg.outputs:
        save_outcome(trajectory, method, folder, shared_seconds=before)


@lru_cache(maxsize=2)
def _data(data: Data, seed: int) -> Split | Corpus:
    return load_data(data, seed)


def _state_to_go_on_from(leg: Leg, trajectory: Trajectory) -> dict[str, Any] | None:
    """The furthest saved state that leads to everything that is still missing."""
    forks = {step: is_whole(fork_path(leg.folder, step)) for step in leg.forks}
    own = [leg.folder / "checkpoint.pt", *(fork_path(leg.folder, step) for step in reversed(forks) if forks[step])]
    missing = [step for step, there in forks.items() if not there]
    for path in (*own, *([leg.after] if leg.after else [])):
        state = load_checkpoint(path)
        if state is None:
            continue
        _check_origin(state, path, leg, "base" if path == leg.after else leg.training)
        if state["step"] > (missing[0] if missing else leg.until):
            continue
        # A reading that was not there when the state was saved must not have missed anything.
        done = state["step"] / trajectory.total
        if all(reading.name in state["readings"] or done <= reading.start for reading in trajectory.readings):
            return state
    if leg.after is not None and not leg.after.exists():
        raise ExperimentError(f"{leg.after} is missing: it is where {leg.name}, seed {leg.seed}, starts from")
    return None


def _seconds_at_begin(leg: Leg) -> float:
    """Seconds of the shared training that this leg starts from."""
    if leg.after is None:
        return 0.0
    state = load_checkpoint(leg.after)
    return 0.0 if state is None else float(state["seconds"])


def _say_what_is_damaged(leg: Leg) -> None:
    for _, folder in leg.outputs:
        if (folder / "result.json").exists():
            for path in damaged(folder):
                _log.warning("%s is not what was written; it is made again from the last checkpoint", path)
    for path in (fork_path(leg.folder, step) for step in leg.forks):
        if path.exists() and not is_whole(path):
            _log.warning("%s is damaged or was not written to its end; what leads to it is trained again", path)


def _origin(leg: Leg) -> dict[str, Any]:
    """What a checkpoint says about where it comes from."""
    return {"recipe": to_yaml(leg.recipe), "method": leg.training, "seed": leg.seed, "version": __version__}


def _check_origin(state: dict[str, Any], path: Path, leg: Leg, method: str) -> None:
    """Refuse the checkpoint of another run; one of a version that did not say what it is of is taken as it is."""
    run = state.get("run")
    if run is None:
        return
    try:
        there = identity(recipe_from_dict(yaml.safe_load(run["recipe"])))
        there |= {"method": run["method"], "seed": run["seed"]}
    except (TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise ExperimentError(
            f"{path} names no recipe of this version {__version__} (it is of {run.get('version', 'an unknown one')}); "
            f"remove {path.parent} to start this run again"
        ) from error
    differs = difference(there, identity(leg.recipe) | {"method": method, "seed": leg.seed})
    if differs is not None:
        raise ExperimentError(f"{path} is of another run ({differs}); remove {path.parent} to start this run again")
    if run["version"] != __version__:
        _log.warning("%s is of latephase %s; going on with %s", path, run["version"], __version__)
