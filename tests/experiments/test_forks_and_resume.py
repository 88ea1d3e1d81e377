"""Training that is shared or interrupted ends in the same bits as training in one go."""

import json
from pathlib import Path

import pytest
import torch
from experiment_helpers import EVERY_TRAINING, assert_same, run_seed, tiny_recipe, total_of, trajectory
from safetensors.torch import load_file
from torch import nn

from latephase.experiments.checkpoints import load_checkpoint, save_checkpoint
from latephase.experiments.config import Recipe
from latephase.experiments.errors import ExperimentError
from latephase.experiments.legs import run_leg
from latephase.experiments.metrics_file import read_records
from latephase.experiments.plan import plan_seed
from latephase.experiments.trajectory import Trajectory

METHODS = [*EVERY_TRAINING, "swa", "ema", "mc-dropout", "late-phase+swa", "late-phase+ema"]


class StopError(Exception):
    """An interruption."""


def results(folder: Path, method: str) -> dict[str, object]:
    """All that a method left behind, but for its wall times."""
    result = json.loads((folder / method / "result.json").read_text())
    del result["seconds"]
    (weights,) = (folder / method).glob("*.safetensors")
    return {"result": result, "model": load_file(weights)}


def stop_at(step: int) -> object:
    def on_step(now: int) -> None:
        if now == step:
            raise StopError

    return on_step


def interrupted(recipe: Recipe, methods: list[str], folder: Path, steps: list[int]) -> None:
    """Train as a study does, with an interruption whenever a leg reaches one of some minibatches."""
    for leg in plan_seed(recipe, methods, 0, total_of(recipe), folder):
        for step in steps:
            if leg.begin < step <= leg.until:
                with pytest.raises(StopError):
                    run_leg(leg, stop_at(step))  # type: ignore[arg-type]
        run_leg(leg)


def test_forked_training_equals_training_from_the_start_bit_for_bit(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    run_seed(recipe, METHODS, tmp_path / "together")
    assert (tmp_path / "together" / "shared" / "fork-24.pt").exists()
    for method in METHODS:
        run_seed(recipe, [method], tmp_path / "alone")
        assert not (tmp_path / "alone" / "shared").exists()
        assert_same(results(tmp_path / "together", method), results(tmp_path / "alone", method))


def test_a_fork_is_written_once_and_not_again_when_another_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written twice can be killed the second time, when the leg counts as done and nobody tidies it."""
    written: list[str] = []

    def save(path: Path, state: dict[str, object]) -> None:
        written.append(path.name)
        save_checkpoint(path, state)

    monkeypatch.setattr("latephase.experiments.legs.save_checkpoint", save)
    recipe = tiny_recipe(swa__start=0.3)
    shared = plan_seed(recipe, ["base", "late-phase", "swa"], 0, total_of(recipe), tmp_path)[0]
    assert shared.name == "shared"
    assert shared.until in shared.forks
    run_leg(shared)
    forks = [f"fork-{step}.pt" for step in shared.forks]
    assert written == forks
    (shared.folder / forks[0]).unlink()
    run_leg(shared)
    assert written == [*forks, forks[0]]
    assert not list(shared.folder.glob("previous-*"))


def test_a_fork_in_the_middle_of_an_epoch_and_of_an_average_is_exact(tmp_path: Path) -> None:
    recipe = tiny_recipe(late_phase__start=0.7, swa__start=0.3)
    methods = ["swa", "late-phase+swa"]
    run_seed(recipe, methods, tmp_path / "together")
    assert (tmp_path / "together" / "shared" / "fork-34.pt").exists()
    for method in methods:
        run_seed(recipe, [method], tmp_path / "alone")
        assert_same(results(tmp_path / "together", method), results(tmp_path / "alone", method))


def test_what_is_shared_is_trained_once() -> None:
    recipe = tiny_recipe()
    legs = plan_seed(recipe, METHODS, 0, 48, Path("x"))
    spans = {leg.name: (leg.begin, leg.until) for leg in legs}
    alone = {"batch-ensemble-4", "batch-ensemble-10", "deep-ensemble", "dropout", "late-phase-from-start"}
    alone |= {"late-phase-hypernetwork", "lookahead"}
    assert {name for name, span in spans.items() if span == (0, 48)} == alone
    assert {name for name, span in spans.items() if span == (24, 48)} == set(EVERY_TRAINING) - alone
    assert spans["shared"] == (0, 24)
    outputs = {leg.name: [method for method, _ in leg.outputs] for leg in legs}
    assert outputs["base"] == ["base", "swa", "ema"]
    assert outputs["dropout"] == ["dropout", "mc-dropout"]
    assert outputs["late-phase"] == ["late-phase", "late-phase+swa", "late-phase+ema"]


# Minibatch 8 ends an epoch; 29 and 34 lie in the middle of a round of 3 that began at 24, and of an epoch.
@pytest.mark.parametrize("steps", [[8, 34], pytest.param([3, 29, 30, 47, 48], marks=pytest.mark.slow)])
def test_an_interrupted_study_ends_in_the_same_bits(tmp_path: Path, steps: list[int]) -> None:
    recipe = tiny_recipe(checkpoint_minutes=0)
    methods = [*METHODS, "twin+swa"]
    run_seed(recipe, methods, tmp_path / "straight")
    interrupted(recipe, methods, tmp_path / "stopped", steps)
    for method in methods:
        assert_same(results(tmp_path / "straight", method), results(tmp_path / "stopped", method))
    for name in ("shared", *EVERY_TRAINING):
        straight, stopped = (read_records(tmp_path / part / name / "metrics.jsonl") for part in ("straight", "stopped"))
        assert straight == stopped
        assert straight


def test_an_interrupted_training_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    recipe = tiny_recipe(checkpoint_minutes=0)
    leg = plan_seed(recipe, ["late-phase"], 0, 48, tmp_path)[0]
    with pytest.raises(StopError):
        run_leg(leg, stop_at(30))  # type: ignore[arg-type]
    state = load_checkpoint(leg.folder / "checkpoint.pt")
    assert state is not None
    assert state["step"] == 30
    assert len(read_records(leg.folder / "metrics.jsonl")) == 3
    seen: list[int] = []
    run_leg(leg, seen.append)
    assert seen == list(range(31, 49))


def test_without_a_checkpoint_an_interrupted_training_starts_again_and_says_nothing_twice(tmp_path: Path) -> None:
    recipe = tiny_recipe(checkpoint_minutes=60)
    leg = plan_seed(recipe, ["base"], 0, 48, tmp_path)[0]
    with pytest.raises(StopError):
        run_leg(leg, stop_at(30))  # type: ignore[arg-type]
    seen: list[int] = []
    run_leg(leg, seen.append)
    assert seen[0] == 1
    assert [record["epoch"] for record in read_records(leg.folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_line_that_an_interruption_cut_short_is_dropped(tmp_path: Path) -> None:
    recipe = tiny_recipe(checkpoint_minutes=0)
    leg = plan_seed(recipe, ["base"], 0, 48, tmp_path)[0]
    with pytest.raises(StopError):
        run_leg(leg, stop_at(30))  # type: ignore[arg-type]
    with open(leg.folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "st')
    run_leg(leg)
    assert [record["epoch"] for record in read_records(leg.folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_not_touched_again(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    run_seed(recipe, ["base", "late-phase"], tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    run_seed(recipe, ["base", "late-phase"], tmp_path)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


# With the average from 0.5 on the copy of minibatch 24 will do; from 0.3 on it has missed something.
@pytest.mark.parametrize(("start", "begin"), [(0.5, 24), (0.3, 0)])
def test_methods_added_later_equal_those_trained_together(tmp_path: Path, start: float, begin: int) -> None:
    recipe = tiny_recipe(swa__start=start)
    run_seed(recipe, ["base", "late-phase"], tmp_path / "grown")
    # SWA was not watched the first time: what needs it goes on again from where its average begins.
    seen: dict[str, list[int]] = {}
    for leg in plan_seed(recipe, ["base", "late-phase", "swa", "late-phase+swa", "twin"], 0, 48, tmp_path / "grown"):
        run_leg(leg, seen.setdefault(leg.name, []).append)
    assert {name: steps[:1] for name, steps in seen.items()} == {
        "shared": [],
        "base": [begin + 1],
        "late-phase": [begin + 1],
        "twin": [25],
    }
    run_seed(recipe, ["base", "swa", "late-phase", "late-phase+swa", "twin"], tmp_path / "together")
    for method in ("base", "swa", "late-phase", "late-phase+swa", "twin"):
        assert_same(results(tmp_path / "grown", method), results(tmp_path / "together", method))


def test_a_start_without_its_shared_training_is_an_error(tmp_path: Path) -> None:
    legs = plan_seed(tiny_recipe(), ["base", "late-phase"], 0, 48, tmp_path)
    with pytest.raises(ExperimentError, match=r"fork-24\.pt is missing: it is where late-phase, seed 0, starts from"):
        run_leg(legs[2])


@pytest.fixture
def _dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    from latephase.experiments import image_task, models

    def build(*args: object, **kwargs: object) -> nn.Module:
        model = models.build_model(*args, **kwargs)  # type: ignore[arg-type]
        model.features.append(nn.Dropout(0.5))  # type: ignore[union-attr,operator]
        return model

    monkeypatch.setattr(image_task, "build_model", build)


@pytest.mark.usefixtures("_dropout")
def test_dropout_draws_on_where_it_stopped() -> None:
    straight, first = trajectory("late-phase"), trajectory("late-phase")
    straight.run(48)
    torch.manual_seed(99)  # what others draw in between is not the run's business
    first.run(29)
    torch.rand(5)
    state = first.state_dict()
    second: Trajectory = trajectory("late-phase")
    second.load_state_dict(state)
    second.run(48)
    assert_same(dict(second.model.state_dict()), dict(straight.model.state_dict()))
    other = trajectory("late-phase", seed=0)
    other._rng["cpu"] = torch.Generator().manual_seed(5).get_state()
    other.run(48)
    assert not torch.equal(other.model.classifier.weight, straight.model.classifier.weight)  # type: ignore[union-attr]


def test_training_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    trajectory("base").run(5)
    assert torch.equal(before, torch.get_rng_state())


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(checkpoint_minutes=0)
    leg = plan_seed(recipe, ["late-phase"], 0, 48, tmp_path)[0]
    loss = Trajectory.loss

    def broken(self: Trajectory, *args: torch.Tensor) -> torch.Tensor:
        return loss(self, *args) * (float("nan") if self.step == 30 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(Trajectory, "loss", broken)
        with pytest.raises(
            ExperimentError, match="became nan in epoch 4; the last checkpoint with a finite loss is kept"
        ):
            run_leg(leg)
    state = load_checkpoint(leg.folder / "checkpoint.pt")
    assert state is not None
    assert state["step"] == 30
    assert all(value.isfinite().all() for value in state["model"].values())
    # Minibatch 30 is trained on again, and this time it is sound.
    run_leg(leg)
    run_seed(recipe, ["late-phase"], tmp_path / "straight")
    assert_same(results(tmp_path, "late-phase"), results(tmp_path / "straight", "late-phase"))
