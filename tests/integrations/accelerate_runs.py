"""A loop with Accelerate, as its users write it, for one process and for several."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader
from transformers_runs import CLIP, Recorder, adamw, dtype_of, images, vision_transformer

import latephase

MEMBERS, EPOCHS = 3, 3


def run(
    folder: Path,
    *,
    start: int = 2,
    attach: str = "after",
    accumulation: int = 1,
    weights: Any = ("norm", "head"),
    save: int | None = None,
    resume: int | None = None,
    scheduler: bool = True,
    data: list[dict[str, Any]] | None = None,
    accelerator: Accelerator | None = None,
    model: nn.Module | None = None,
    bf16: bool = False,
    infinite: tuple[int, ...] = (),
) -> tuple[nn.Module, Recorder]:
    """Trains from step `resume`, saves the state after step `save`, and returns the collapsed model."""
    if accelerator is None:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=accumulation, mixed_precision="bf16" if bf16 else "no"
        )
    recorder = Recorder()
    model = vision_transformer(0.2 if save or resume else 0.0) if model is None else model
    optimizer = adamw(model)
    # A generator of its own, because the loader draws a number for every epoch, and for every resumed one another.
    seeds = torch.Generator().manual_seed(0)
    data = data or images(20, dtype=dtype_of(model))
    loader = DataLoader(data, batch_size=4, collate_fn=recorder, generator=seeds)
    rates = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    if attach == "before":
        late = latephase.LatePhase(model, MEMBERS, weights)
        late.optimizer(optimizer)
        model, optimizer, loader, rates = accelerator.prepare(model, optimizer, loader, rates)
    else:
        model, optimizer, loader, rates = accelerator.prepare(model, optimizer, loader, rates)
        late = latephase.LatePhase(model, MEMBERS, weights)
        late.optimizer(optimizer)
    accelerator.register_for_checkpointing(late)
    step = 0
    if resume is not None:
        accelerator.load_state(str(folder / f"step-{resume}"))
        step = resume
        assert late.phase == ("late" if resume > start else "attached")
    first, minibatches = step * accumulation, len(loader)
    for minibatch in range(first, EPOCHS * minibatches):
        if minibatch % minibatches == 0 or minibatch == first:
            batches = iter(accelerator.skip_first_batches(loader, minibatch % minibatches))
        batch = next(batches)
        with accelerator.accumulate(model):
            if late.phase == "attached" and step == start:
                late.start()
            loss = model(**batch).loss
            accelerator.backward(loss * (float("inf") if step in infinite else 1.0))
            if accelerator.sync_gradients and accelerator.scaler is None:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            if scheduler:
                rates.step()
            optimizer.zero_grad()
            step += accelerator.sync_gradients
        if accelerator.sync_gradients and step == save:
            accelerator.save_state(str(folder / f"step-{step}"))
    assert late.collapse() is (accelerator.unwrap_model(model) if attach == "before" else model)
    return accelerator.unwrap_model(model), recorder
