"""A Trainer that resumes from its own checkpoint, in the middle of a round, equals one that was never interrupted."""

from pathlib import Path

import pytest
import torch
from transformers_runs import (
    EPOCH,
    TrainerCallback,
    callback,
    furthest,
    image_model,
    plain_loop,
    state,
    text_model,
    trainer,
)

from latephase import LatePhaseError

SAVE = {"save_strategy": "steps", "save_steps": 4}
START = 6
"""With three members checkpoint 8 is in the middle of the first round, and checkpoint 4 before the start."""


class InterruptedRunError(Exception):
    """Stands for a machine that goes down."""


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state_, control, **_) -> None:
        if state_.global_step == self.step:
            raise InterruptedRunError


CASES = {
    "text": (text_model, {}, {}),
    "batchnorm": (image_model, {}, {}),
    "rank-one": (text_model, {"weights": ["norm", "rank-one"], "noise": 0.1}, {}),
    "accumulation": (
        image_model,
        {"optimizer_state": "reset"},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    ),
    "bf16": (lambda dropout: text_model(dropout, torch.float32), {}, {"bf16": True}),
    "swa": (image_model, {"swa": 6, "swa_every": 3}, {}),
}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow) if name == "accumulation" else name for name in CASES]
)
def test_resumed_equals_uninterrupted(case: str, tmp_path: Path) -> None:
    """Bit for bit, with dropout and shuffled minibatches: at step 8, and at step 4, before the start."""
    model, options, changes = CASES[case]
    through, _ = trainer(model(dropout=0.2), [callback(START, **options)], tmp_path, **SAVE, **changes)
    through.train()
    expected = state(through.model)
    for step in (8, 4) if case in ("text", "rank-one") else (8,):
        late = callback(START, **options)
        again, _ = trainer(model(dropout=0.2), [late], tmp_path, **changes)
        seen = {}

        class Look(TrainerCallback):
            def on_step_begin(self, args, state_, control, late=late, seen=seen, **_) -> None:
                seen.setdefault("turn", (state_.global_step, late.late.phase, late.late.turn))

        again.add_callback(Look())
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert seen["turn"] == ((8, "late", 2) if step == 8 else (4, "attached", 0))
        assert furthest(state(again.model), expected) == 0


def test_an_interrupted_run_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    """resume_from_checkpoint=True; the callback that was interrupted leaves the averaged model when it is asked to."""
    through, _ = trainer(text_model(0.1), [callback(members=2)], tmp_path / "through", **SAVE)
    through.train()
    late = callback(members=2)
    broken, _ = trainer(text_model(0.1), [late, Stop(11)], tmp_path / "broken", **SAVE)
    with pytest.raises(InterruptedRunError):
        broken.train()
    assert late.late.phase == "late"
    average = late.late.averaged_state_dict()
    assert furthest(state(late.late.collapse()), average) == 0
    again, _ = trainer(text_model(0.1), [callback(members=2)], tmp_path / "broken", **SAVE)
    again.train(resume_from_checkpoint=True)
    assert furthest(state(again.model), state(through.model)) == 0


def test_resuming_from_another_folder(tmp_path: Path) -> None:
    through, _ = trainer(text_model(), [callback()], tmp_path / "old", **SAVE)
    through.train()
    checkpoint = str(tmp_path / "old" / "checkpoint-8")
    lost, _ = trainer(text_model(), [callback()], tmp_path / "new")
    with pytest.raises(LatePhaseError, match=r"latephase\.pt.*resume_from.*start=8"):
        lost.train(resume_from_checkpoint=checkpoint)
    found, _ = trainer(text_model(), [callback(resume_from=checkpoint)], tmp_path / "new")
    found.train(resume_from_checkpoint=checkpoint)
    assert furthest(state(found.model), state(through.model)) == 0


def test_the_members_of_another_run_are_refused(tmp_path: Path) -> None:
    for name, seed in (("old", 0), ("new", 1)):
        made, _ = trainer(text_model(), [callback()], tmp_path / name, **SAVE, seed=seed)
        made.train()
    mixed, _ = trainer(text_model(), [callback()], tmp_path / "new")
    with pytest.raises(LatePhaseError, match=r"checkpoint-8/latephase\.pt.*do not average to the model.*resume_from"):
        mixed.train(resume_from_checkpoint=str(tmp_path / "old" / "checkpoint-8"))


@pytest.mark.parametrize("weights", [["norm", "head"], ["rank-one"]], ids=["norm+head", "rank-one"])
def test_a_run_that_had_none_gets_members_in_the_middle(weights: list[str], tmp_path: Path) -> None:
    """From the checkpoint of an ordinary Trainer (ACEsuit/mace#172: start averaging from a run that had none)."""
    plain, recorder = trainer(text_model(), [], tmp_path, **SAVE)
    plain.train()
    late = callback(start=9, weights=weights)
    made, _ = trainer(text_model(), [], tmp_path)
    # Added later it attaches later: the checkpoint's optimizer does not know the factors of a family that has some.
    made.add_callback(late)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    batches = [[batch] for batch in recorder.batches]
    phase = plain_loop(text_model(), batches, 9, attach=8, members=3, weights=weights)
    assert furthest(state(made.model), state(phase.collapse())) <= 1e-12


def test_save_only_model_leaves_no_members_behind(tmp_path: Path) -> None:
    made, _ = trainer(text_model(), [callback()], tmp_path, **SAVE, save_only_model=True)
    made.train()
    assert (tmp_path / "checkpoint-8" / "model.safetensors").is_file()
    assert not list(tmp_path.rglob("latephase*"))


def test_rotation_takes_the_members_along(tmp_path: Path) -> None:
    made, _ = trainer(text_model(), [callback()], tmp_path, **SAVE, save_total_limit=1)
    made.train()
    assert [path.parent.name for path in tmp_path.rglob("latephase.pt")] == [f"checkpoint-{3 * EPOCH}"]


def test_a_start_that_is_left_to_the_losses_resumes(tmp_path: Path) -> None:
    options = {"start": "auto", "members": 2}
    changes = {"max_steps": 24, "logging_strategy": "steps", "logging_steps": 2, **SAVE}
    through, _ = trainer(text_model(), [callback(**options)], tmp_path, **changes)
    through.train()
    again, _ = trainer(text_model(), [callback(**options)], tmp_path, **changes)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert furthest(state(again.model), state(through.model)) == 0
