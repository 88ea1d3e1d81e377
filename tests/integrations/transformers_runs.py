"""Trainers of the real library on tiny models, and the plain loop that they have to equal."""

import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# The tests take the library's names from here: some of its parts warn when Python first compiles them.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from transformers import (
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
        BertConfig,
        BertForSequenceClassification,
        ResNetConfig,
        ResNetForImageClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        ViTConfig,
        ViTForImageClassification,
        get_scheduler,
    )

    from latephase.integrations.transformers import LatePhaseCallback

import latephase

__all__ = ["AutoModelForImageClassification", "AutoModelForSequenceClassification"]
transformers.utils.logging.set_verbosity_error()

CLASSES, SAMPLES, BATCH, EPOCH, EPOCHS = 3, 20, 4, 5, 3
"""Three epochs of five minibatches of four samples."""
KIND = "single_label_classification"
"""Otherwise the first forward pass finds it out and writes it into the config, which sets compiled code aside."""
RATE, DECAY, CLIP = 0.02, 0.05, 1.0


def text_model(dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=CLASSES,
        problem_type=KIND,
    )
    return BertForSequenceClassification(config).to(dtype)


def image_model(dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A residual network, with BatchNorm; it has no dropout."""
    torch.manual_seed(1)
    config = ResNetConfig(
        num_channels=1,
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[1, 1],
        layer_type="basic",
        num_labels=CLASSES,
        problem_type=KIND,
    )
    return ResNetForImageClassification(config).to(dtype)


def vision_transformer(dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=CLASSES,
        problem_type=KIND,
    )
    return ViTForImageClassification(config).to(dtype)


def texts(count: int = SAMPLES, seed: int = 0) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 40, (count, 8), generator=draw)
    return [{"input_ids": row.tolist(), "labels": int(row.sum()) % CLASSES} for row in tokens]


def images(count: int = SAMPLES, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=draw)
    noise = torch.randn(count, 1, 8, 8, generator=draw, dtype=torch.float64)
    return [
        {"pixel_values": (picture + label).to(dtype), "labels": int(label)}
        for picture, label in zip(noise, labels, strict=True)
    ]


class Recorder:
    """A collator that remembers the minibatches which the Trainer asks for."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Tensor]] = []

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = transformers.default_data_collator(samples)
        self.batches.append(batch)
        return batch


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "num_train_epochs": EPOCHS,
        "learning_rate": RATE,
        "weight_decay": DECAY,
        "warmup_steps": 3,
        "max_grad_norm": CLIP,
        "optim": "adamw_torch",
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 5,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TrainingArguments(**{**settings, **changes})


def trainer(
    model: nn.Module,
    callbacks: Iterable[TrainerCallback],
    folder: Path,
    data: list[dict[str, Any]] | None = None,
    optimizers: tuple[Any, Any] = (None, None),
    **changes: Any,
) -> tuple[Trainer, Recorder]:
    recorder = Recorder()
    if data is None:
        data = texts() if isinstance(model, BertForSequenceClassification) else images(dtype=dtype_of(model))
    made = Trainer(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=data,
        eval_dataset=data[:6],
        data_collator=recorder,
        callbacks=list(callbacks),
        optimizers=optimizers,
    )
    return made, recorder


def dtype_of(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """In the Trainer's groups: no weight decay on biases and on what it takes for norms, by class and name."""
    names = set(Trainer.get_decay_parameter_names(None, model))
    decayed = [p for n, p in model.named_parameters() if n in names]
    others = [p for n, p in model.named_parameters() if n not in names]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE)


def plain_loop(
    model: nn.Module,
    batches: list[list[dict[str, Tensor]]],
    start: int,
    *,
    make: Callable[[nn.Module], torch.optim.Optimizer] = adamw,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    after: Callable[[int, nn.Module, Any], None] = lambda *_: None,
    bf16: bool = False,
    clip: float = CLIP,
    divide: int | None = None,
    attach: int = 0,
    **late_options: Any,
) -> latephase.LatePhase:
    """One optimizer step for each list of minibatches, on the mean of their losses; the phase is left open."""
    optimizer = make(model)
    if schedule is None:
        scheduler = get_scheduler("linear", optimizer, num_warmup_steps=3, num_training_steps=len(batches))
    else:
        scheduler = schedule(optimizer)
    for step, parts in enumerate(batches):
        if step == attach:
            late = latephase.LatePhase(model, **late_options)
            late.optimizer(optimizer)
        if step == start:
            late.start()
        model.train()
        optimizer.zero_grad()
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                loss = model(**part).loss
            (loss / (divide or len(parts))).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        after(step + 1, model, optimizer)
    return late


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference between two state dicts with the same keys in the same order."""
    assert list(one) == list(other)
    return max(float((one[n].double() - other[n].double()).abs().max()) for n in one)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def callback(start: str | float = "1e", members: int = 3, **options: Any) -> LatePhaseCallback:
    return LatePhaseCallback(members=members, start=start, **options)
