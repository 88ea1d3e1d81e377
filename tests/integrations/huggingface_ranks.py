"""What each of two processes does with the Trainer and with Accelerate; test_huggingface_ranks.py judges it."""

import datetime
import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate_runs
import torch
import torch.distributed as dist
from torch import nn
from transformers_runs import callback, image_model, images, state, text_model, texts, trainer, vision_transformer

from latephase import LatePhaseError

WORLD, SAMPLES, STEPS = 2, 24, 9
"""24 samples are six minibatches: three a rank and epoch, in three epochs."""
PLAIN = {"lr_scheduler_type": "constant", "warmup_steps": 0}


def trained(
    folder: Path,
    model: nn.Module | None = None,
    options: dict[str, Any] | None = None,
    resume: int | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """The averaged model at the end, and the minibatches that this rank took."""
    late = callback(**{"start": "1e", "weights": ["norm", "head"], **(options or {})})
    made, recorder = trainer(
        vision_transformer() if model is None else model,
        [late],
        folder,
        images(SAMPLES) if model is None else texts(SAMPLES),
        **PLAIN,
        **changes,
    )
    dist.barrier()
    made.train(resume_from_checkpoint=None if resume is None else str(folder / f"checkpoint-{resume}"))
    dist.barrier()
    wrapper = made.model_wrapped
    return {
        "state": state(made.model),
        "batches": recorder.batches,
        "wrapped": type(wrapper).__name__,
        "synchronised": wrapper.require_backward_grad_sync,
    }


def resumed(folder: Path, **options: Any) -> dict[str, Any]:
    """Uninterrupted, and from its checkpoint in the middle of a round."""
    saving = {"save_strategy": "steps", "save_steps": 5}
    through = trained(folder, text_model(0.2), options, **saving)
    again = trained(folder, text_model(0.2), options, resume=5)
    return {"through": through["state"], "again": again["state"]}


def accelerated(folder: Path, attach: str) -> dict[str, Any]:
    model, recorder = accelerate_runs.run(folder, attach=attach, scheduler=False, data=images(SAMPLES))
    return {"state": state(model), "batches": recorder.batches}


def refused(folder: Path, model: Callable[[], nn.Module], later: bool = False, **options: Any) -> str:
    late = callback(**options)
    try:
        made, _ = trainer(model(), [] if later else [late], folder, images(SAMPLES))
        if later:
            made.add_callback(late)
        made.train()
    except LatePhaseError as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def scenarios(folder: Path) -> dict[str, Callable[[], Any]]:
    over = {"members": 4, "members_over_ranks": True}
    accumulated = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    return {
        "same": lambda: trained(folder / "same"),
        "rank-one": lambda: trained(folder / "rank-one", options={"weights": ["rank-one"]}),
        "accumulated": lambda: trained(folder / "accumulated", **accumulated),
        "over ranks": lambda: trained(folder / "over", options=over),
        "over ranks, accumulated": lambda: trained(folder / "over-accumulated", options=over, **accumulated),
        "resumed": lambda: resumed(folder / "resumed", start=3),
        "resumed over ranks": lambda: resumed(folder / "resumed-over", start=4, **over),
        "accelerate before": lambda: accelerated(folder / "before", "before"),
        "accelerate after": lambda: accelerated(folder / "after", "after"),
        "uneven members": lambda: refused(folder, vision_transformer, members=3, members_over_ranks=True),
        "statistics": lambda: refused(folder, image_model, members=4, members_over_ranks=True),
        "factors": lambda: refused(folder, vision_transformer, later=True, weights=["rank-one"]),
    }


def work(rank: int, folder: str) -> None:
    """Runs every scenario, and writes down what came of each."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD)}
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    outcomes = {}
    for name, scenario in scenarios(Path(folder)).items():
        try:
            outcomes[name] = scenario()
        except Exception:  # the test that asks for it shows it
            outcomes[name] = traceback.format_exc()
        torch.save(outcomes, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
