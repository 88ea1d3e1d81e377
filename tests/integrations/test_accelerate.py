"""Loops with Accelerate equal the plain loop; `register_for_checkpointing(late)` resumes in the middle of a round."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate_runs import run
from transformers_runs import furthest, plain_loop, state, vision_transformer

import latephase


def exponential(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


@pytest.fixture(autouse=True)
def _no_accelerator_of_other_tests():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("weights", [("norm", "head"), ("rank-one",)], ids=["norm+head", "rank-one"])
@pytest.mark.parametrize("attach", ["before", "after"])
def test_prepared_equals_the_plain_loop(attach: str, weights, tmp_path: Path) -> None:
    """Attached before or after `prepare`, with a prepared scheduler and `clip_grad_norm_`."""
    model, recorder = run(tmp_path, attach=attach, weights=weights)
    batches = [[batch] for batch in recorder.batches]
    assert len(batches) == 15
    late = plain_loop(vision_transformer(), batches, 2, schedule=exponential, members=3, weights=weights)
    assert furthest(state(model), state(late.collapse())) <= 1e-12


def test_gradient_accumulation(tmp_path: Path) -> None:
    """Two minibatches a step and, at the end of an epoch of five, one, which Accelerate divides by two all the same."""
    model, recorder = run(tmp_path, accumulation=2)
    epochs = [recorder.batches[i : i + 5] for i in (0, 5, 10)]
    batches = [parts for epoch in epochs for parts in (epoch[:2], epoch[2:4], epoch[4:])]
    late = plain_loop(
        vision_transformer(), batches, 2, schedule=exponential, divide=2, members=3, weights=("norm", "head")
    )
    assert furthest(state(model), state(late.collapse())) <= 1e-12


def test_bfloat16(tmp_path: Path) -> None:
    model, recorder = run(tmp_path, bf16=True, model=vision_transformer(dtype=torch.float32), scheduler=False)
    batches = [[batch] for batch in recorder.batches]
    late = plain_loop(
        vision_transformer(dtype=torch.float32),
        batches,
        2,
        schedule=lambda _: None,
        bf16=True,
        members=3,
        weights=("norm", "head"),
    )
    assert furthest(state(model), state(late.collapse())) == 0


@pytest.mark.parametrize("weights", [("norm", "head"), ("rank-one",)], ids=["norm+head", "rank-one"])
def test_save_state_and_load_state_in_the_middle_of_a_round(weights, tmp_path: Path) -> None:
    """With dropout: Accelerate's own checkpoint holds the generators' states, and the members as a custom object."""
    torch.manual_seed(0)
    through, _ = run(tmp_path, save=6, weights=weights)
    assert (tmp_path / "step-6" / "custom_checkpoint_0.pkl").is_file()
    saved = torch.load(tmp_path / "step-6" / "custom_checkpoint_0.pkl", weights_only=True)
    assert (saved["turn"], saved["rounds"]) == (1, 1)
    again, _ = run(tmp_path, resume=6, weights=weights)
    assert furthest(state(again), state(through)) == 0


def test_an_overflow_that_accelerates_scaler_skips(tmp_path: Path) -> None:
    """The patched `step` of AcceleratedOptimizer, with a scaler on the CPU; the turns of steps 3 and 7 are repeated."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=4)
    model, recorder = run(
        tmp_path,
        accelerator=accelerator,
        model=vision_transformer(dtype=torch.float32),
        infinite=(3, 7),
        scheduler=False,
    )
    batches = [[batch] for i, batch in enumerate(recorder.batches) if i not in (3, 7)]
    late = plain_loop(
        vision_transformer(dtype=torch.float32),
        batches,
        2,
        schedule=lambda _: None,
        clip=0,
        members=3,
        weights=("norm", "head"),
    )
    assert furthest(state(model), state(late.collapse())) <= 1e-5


@pytest.mark.parametrize("name", ["DeepSpeedEngine", "FullyShardedDataParallel", "XlaFullyShardedDataParallel"])
def test_wrappers_that_cannot_work(name: str) -> None:
    """What `prepare` returns with these plugins, none of which it uses on a CPU: known by the class's name."""
    engine = type(name, (torch.nn.Module,), {})()
    engine.module = torch.nn.Linear(2, 2)
    with pytest.raises(latephase.LatePhaseValueError, match=f"model: {name}: .*(use|XLA)"):
        latephase.LatePhase(engine)
    with pytest.raises(latephase.LatePhaseValueError, match=name):
        latephase.LatePhase(torch.nn.Sequential(engine))
