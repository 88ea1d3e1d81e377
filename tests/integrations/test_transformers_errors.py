"""What cannot work in a Trainer is an error when it is made, or before its first step, that says what would work."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from schedulefree import AdamWScheduleFree
from transformers_runs import (
    LatePhaseCallback,
    Trainer,
    TrainerCallback,
    arguments,
    callback,
    image_model,
    text_model,
    texts,
    trainer,
)

from latephase import LatePhaseError, LatePhaseValueError


def untouched(model: torch.nn.Module) -> bool:
    return list(model.state_dict()) == list(text_model().state_dict()) and "train" not in vars(model)


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "XLA", "MEGATRON_LM"])
def test_strategies_that_cannot_work(kind: str, tmp_path: Path) -> None:
    """As if the Trainer ran where this is Accelerate's strategy: none of them does in one process on a CPU."""
    model = text_model()

    class Elsewhere(Trainer):
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            PartialState().distributed_type = DistributedType[kind]

    try:
        with pytest.raises(LatePhaseError, match=rf"does not work with {kind}: .*train"):
            Elsewhere(model=model, args=arguments(tmp_path), train_dataset=texts(), callbacks=[callback()])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert untouched(model)


def test_two_callbacks_in_one_trainer(tmp_path: Path) -> None:
    with pytest.raises(LatePhaseError, match="two LatePhaseCallbacks in one Trainer"):
        trainer(text_model(), [callback(), callback()], tmp_path)
    for _ in range(2):  # a notebook's cell, run again
        trainer(text_model(), [callback()], tmp_path)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (15, "after optimizer step 15.*ends after 15"),
        ("3e", "'3e'.*ends after 3 epochs"),
        (0.0, "fraction lies between 0 and 1"),
        ("soon", "'soon'; use an epoch"),
        ("auto", "logging_strategy='no'"),
    ],
)
def test_a_start_that_never_comes(start, words: str, tmp_path: Path) -> None:
    with pytest.raises(LatePhaseValueError, match=words):
        trainer(text_model(), [callback(start)], tmp_path)[0].train()


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        ({"weights": "batch"}, {}, "'batch'"),
        ({"members": 0}, {}, "members: 0"),
        ({"members_over_ranks": True}, {}, "needs torch.distributed"),
        ({"accumulate": "in_place"}, {}, "max_grad_norm is 1.0"),
        ({"statistics": "median"}, {}, "'median'; use one of 'fold', 'mean'"),
        ({"swa": 0.7}, {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}, "two"),
        ({"swa": "auto"}, {}, "swa: 'auto'"),
        ({"swa": 0.7, "swa_every": 0}, {}, "swa_every: 0"),
    ],
)
def test_arguments_that_cannot_work(options: dict, changes: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(LatePhaseValueError, match=words):
        trainer(text_model(), [callback(**options)], tmp_path, **changes)


def test_swa_beyond_the_run(tmp_path: Path) -> None:
    made, _ = trainer(text_model(), [callback(swa=20)], tmp_path)
    with pytest.raises(LatePhaseValueError, match="swa: 20 is after optimizer step 20"):
        made.train()


def test_an_optimizer_without_the_late_phase_weights(tmp_path: Path) -> None:
    """Said before the first step, not when the members come to life."""
    model = image_model()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.ndim > 1], lr=0.1)
    made, _ = trainer(model, [callback("2e")], tmp_path, optimizers=(optimizer, None))
    with pytest.raises(
        LatePhaseError, match=r"SGD does not hold .*normalization\.weight.* and \d+ more.*requires_grad"
    ):
        made.train()
    assert made.state.global_step == 0


def test_a_schedule_free_optimizer(tmp_path: Path) -> None:
    """The Trainer calls its eval() after the model's: the average would be changed, and then the members."""
    model = text_model()
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1)
    made, _ = trainer(model, [callback()], tmp_path, optimizers=(optimizer, None))
    with pytest.raises(LatePhaseError, match=r"AdamWScheduleFree: .*a loop of your own"):
        made.train()
    assert made.state.global_step == 0


def test_a_trainer_that_does_not_use_the_optimizer_it_was_given(tmp_path: Path) -> None:
    class Own(Trainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
            return self.optimizer

    model = text_model()
    given = torch.optim.SGD(model.parameters(), lr=0.1), None
    made = Own(model=model, args=arguments(tmp_path), train_dataset=texts(), callbacks=[callback()], optimizers=given)
    with pytest.raises(LatePhaseError, match=r"given SGD .* trains with another Adam"):
        made.train()
    assert made.state.global_step == 0


def test_a_trainer_whose_optimizer_is_replaced_in_the_middle(tmp_path: Path) -> None:
    """At the first step of the other optimizer, before the start as well as after it."""

    class Replace(TrainerCallback):
        def on_epoch_begin(self, args, state_, control, **_) -> None:
            if state_.global_step == 5:
                made.optimizer = torch.optim.SGD(made.model.parameters(), lr=0.1)

    made, _ = trainer(text_model(), [callback("2e"), Replace()], tmp_path)
    with pytest.raises(LatePhaseError, match=r"step 6 was not one of AdamW.*before trainer\.train\(\)"):
        made.train()


def test_a_search_that_keeps_its_checkpoints_elsewhere(tmp_path: Path) -> None:
    class Elsewhere(Trainer):
        def _get_output_dir(self, trial) -> str:
            return str(tmp_path / "run-0")

    made = Elsewhere(
        model=text_model(),
        args=arguments(tmp_path, save_strategy="steps", save_steps=2),
        train_dataset=texts(),
        callbacks=[LatePhaseCallback(members=2, start=0)],
    )
    with pytest.raises(LatePhaseError, match=r"no checkpoint folder .*save_strategy='no'"):
        made.train()
