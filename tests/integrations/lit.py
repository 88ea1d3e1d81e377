"""What the tests of the Lightning callback share: a module, its data, and the plain loop that judges it."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import latephase

# Lightning's own affairs: torch's news of its pytree, and advice.
OWN_WARNINGS = [
    "ignore:.*LeafSpec.*:FutureWarning",
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:.*callbacks used to create the checkpoint need to be provided.*ModelCheckpoint",
    "ignore:Using ModelCheckpoint with manual optimization",
    r"ignore:`.fit\(ckpt_path=None\)` was called without a model",
]

PER_EPOCH, EPOCHS, MEMBERS = 7, 4, 3
STEPS = PER_EPOCH * EPOCHS

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.05),
}


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """The same weights at every call."""
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net


def batches(count: int = PER_EPOCH, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(4, 5, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(3, (4,), generator=generator),
        )
        for _ in range(count)
    ]


class Resumable:
    """A loader that goes on where it was, as Lightning wants of one that resumes in the middle of an epoch."""

    def __init__(self, data: list) -> None:
        self.data, self.next, self.resumed = data, 0, 0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator:
        first, self.resumed = self.resumed, 0
        for number in range(first, len(self.data)):
            self.next = number + 1
            yield self.data[number]

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.resumed = state["next"] % len(self.data)


class Lit(pl.LightningModule):
    """A classifier as its user writes it."""

    def __init__(
        self, optimizer: str = "nesterov", schedule: dict | None = None, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        self.net = network(dtype)
        self.rule, self.schedule = optimizer, schedule
        self.validated: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert not self.net.training
        self.validated.append({name: value.clone() for name, value in values(self.net).items()})
        self.log("loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = OPTIMIZERS[self.rule](self.parameters())
        if self.schedule is None:
            return optimizer
        rest = {key: value for key, value in self.schedule.items() if key != "make"}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule["make"](optimizer), **rest}}


class Manual(Lit):
    """Manual optimization, with one optimizer or two, by step() or with closures, and a schedule of its own."""

    def __init__(self, count: int = 1, closures: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.count, self.closures = count, closures

    def configure_optimizers(self):
        return optimizers(self.net, self.count)

    def training_step(self, batch, batch_idx):
        rules = self.optimizers()
        rules = rules if isinstance(rules, list) else [rules]
        for rule in rules:
            rule.zero_grad()
        if self.closures:

            def closure():
                self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))

            rules[0].step(closure=closure)
            return None
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.manual_backward(loss)
        for rule in rules:
            rule.step()
        return loss


def optimizers(net, count: int) -> list:
    if count == 1:
        return [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)]
    return [torch.optim.SGD(net[0].parameters(), lr=0.05, momentum=0.9), torch.optim.Adam(net[1:].parameters(), 1e-2)]


class Smooth(Lit):
    """With a normalisation that has no statistics."""

    def __init__(self, optimizer: str = "nesterov", dtype: torch.dtype = torch.float64) -> None:
        super().__init__(optimizer, dtype=dtype)
        self.net = smooth(dtype)


def smooth(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    net = network(dtype)
    net[1] = nn.LayerNorm(6, dtype=dtype)
    return net


def values(net: nn.Module) -> dict[str, Tensor]:
    """What lies in the model now, parameters and buffers."""
    return dict(net.named_parameters()) | dict(net.named_buffers())


def fit(module: pl.LightningModule, callbacks: list, data: Any = None, val: Any = None, ckpt: Any = None, **options):
    """`Trainer.fit` on the same minibatches every epoch; gives the trainer."""
    trainer = pl.Trainer(**{**QUIET, "max_epochs": EPOCHS, **options}, callbacks=callbacks)
    data = Resumable(batches()) if data is None else data
    trainer.fit(module, data, None if val is None else Resumable(val), ckpt_path=ckpt)
    return trainer


def plain_loop(
    steps: int = STEPS,
    *,
    start: int | None,
    optimizer: str = "nesterov",
    data: list | None = None,
    each: int = 1,
    clip: Callable[[Any], Any] | None = None,
    after_step: Callable[[int, latephase.LatePhase, torch.optim.Optimizer], None] | None = None,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    dtype: torch.dtype = torch.float64,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    net: nn.Module | None = None,
    **options,
) -> tuple[nn.Module, latephase.LatePhase]:
    """zero_grad, backward, step with LatePhase, `each` minibatches a step; the model, and the phase, still on."""
    net = network(dtype) if net is None else net
    rule = OPTIMIZERS[optimizer](net.parameters())
    late = latephase.LatePhase(net, **{"members": MEMBERS, **options})
    late.optimizer(rule)
    every = schedule(rule) if schedule else None
    data = data or batches(dtype=dtype)
    context = torch.autocast("cpu", autocast) if autocast else nullcontext()
    parts = [data[i : i + each] for i in range(0, len(data), each)]
    for step in range(steps):
        if step == start:
            late.start()
        rule.zero_grad()
        for x, y in parts[step % len(parts)]:
            with context:
                loss = F.cross_entropy(net(x), y) / each
            (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            scaler.unscale_(rule)
        if clip is not None:
            clip(net.parameters())
        if scaler is None:
            rule.step()
        else:
            scaler.step(rule)
            scaler.update()
        if every is not None:
            every.step()
        if after_step is not None:
            after_step(step, late, rule)
    return net, late


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_trained_as(module: Lit, net: nn.Module, late: latephase.LatePhase, tolerance: float = 0.0) -> None:
    """The module holds the loop's average alone, and its hooks are gone."""
    late.collapse()
    assert_equal(dict(module.net.state_dict()), dict(net.state_dict()), tolerance)
    assert "train" not in module.__dict__
    assert "configure_model" not in module.__dict__
    assert not hasattr(module.net[3], "parametrizations")
