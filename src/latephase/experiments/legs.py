"""Train one leg: from its start or from where it was interrupted, with checkpoints on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from latephase.experiments.checkpoints import load_checkpoint, save_checkpoint
from latephase.experiments.config import Data
from latephase.experiments.data import Split
from latephase.experiments.data_parallel import DataParallel
from latephase.experiments.device import prepare_process
from latephase.experiments.errors import ExperimentError
from latephase.experiments.methods import METHODS, READINGS
from latephase.experiments.metrics_file import append_record, cut_records
from latephase.experiments.outcome import save_outcome
from latephase.experiments.plan import Leg, fork_path
from latephase.experiments.tasks import load_data
from latephase.experiments.text import Corpus
from latephase.experiments.trajectory import Trajectory


def is_done(leg: Leg) -> bool:
    """Whether everything that a leg is for is on the disk.

    Args:
        leg: The leg.

    Returns:
        True if all its results, or all its copies, are there.
    """
    if leg.outputs:
        return all((folder / "result.json").exists() for _, folder in leg.outputs)
    return all(fork_path(leg.folder, step).exists() for step in leg.forks)


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
    prepare_process(leg.recipe.compute)
    trajectory = Trajectory(
        leg.recipe,
        _data(leg.recipe.data, leg.seed),
        leg.seed,
        METHODS[leg.training](leg.recipe),
        [READINGS[name](leg.recipe) for name in leg.readings],
        parallel,
    )
    writes = parallel is None or parallel.rank == 0
    state = _state_to_go_on_from(leg, trajectory)
    if state is not None:
        trajectory.load_state_dict(state)
    before = _seconds_at_begin(leg)
    metrics, checkpoint = leg.folder / "metrics.jsonl", leg.folder / "checkpoint.pt"
    if writes:
        cut_records(metrics, trajectory.step)
    saved = time.monotonic()

    def after_step(step: int) -> None:
        nonlocal saved
        if writes and time.monotonic() - saved > 60 * leg.recipe.checkpoint_minutes:
            trajectory.check()
            save_checkpoint(checkpoint, trajectory.state_dict())
            saved = time.monotonic()
        if on_step is not None:
            on_step(step)

    def after_epoch(record: dict[str, Any]) -> None:
        if writes:
            append_record(metrics, record)

    for stop in (*leg.forks, leg.until):
        if trajectory.step > stop:
            continue
        trajectory.run(stop, after_epoch, after_step)
        trajectory.check()
        if stop in leg.forks and writes:
            save_checkpoint(fork_path(leg.folder, stop), trajectory.state_dict())
    if not writes:
        return
    if leg.outputs:
        save_checkpoint(checkpoint, trajectory.state_dict())
    for method, folder in leg.outputs:
        save_outcome(trajectory, method, folder, shared_seconds=before)


@lru_cache(maxsize=2)
def _data(data: Data, seed: int) -> Split | Corpus:
    return load_data(data, seed)


def _state_to_go_on_from(leg: Leg, trajectory: Trajectory) -> dict[str, Any] | None:
    """The furthest saved state that leads to everything that is still missing."""
    own = [leg.folder / "checkpoint.pt", *(fork_path(leg.folder, step) for step in reversed(leg.forks))]
    missing = [step for step in leg.forks if not fork_path(leg.folder, step).exists()]
    for path in (*own, *([leg.after] if leg.after else [])):
        state = load_checkpoint(path)
        if state is None or state["step"] > (missing[0] if missing else leg.until):
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
