"""Presets of short trainings on CIFAR-10, and the training loop that they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fast_networks import FastNetwork
from latephase.experiments.config import EMA, SWA, Compute, Data, LatePhase, Lookahead, Recipe, Training
from latephase.experiments.data import Images, Split, hand_over
from latephase.experiments.methods import METHODS
from latephase.experiments.methods.lookahead import Lookahead as PlainLookahead
from latephase.experiments.methods.method import Method, Reading
from latephase.experiments.trajectory import Trajectory

PATCHES_FROM = 500


@dataclass(frozen=True)
class Preset:
    """A network, its training, and the grid.

    Args:
        recipe: data and training; the length is set for each run.
        network: makes the network from normalised images.
        lengths: epochs to try, rising.
        rates: learning rates to try.
        target: accuracy in percent.
        bias_rate: learning rate of BatchNorm's biases relative to the others'.
        smoothing: of the labels.
    """

    recipe: Recipe
    network: Callable[[Tensor], nn.Module]
    lengths: tuple[int, ...]
    rates: tuple[float, ...]
    target: float
    bias_rate: float
    smoothing: float = 0.2


def triangle(**changes: Any) -> Training:
    """Nesterov's momentum; the learning rate rises for a fifth of training and falls linearly from there on."""
    shape = {"schedule": "wsd", "warmup": 0.2, "constant_until": 0.2, "final_lr": 0.07}
    return Training(**{"momentum": 0.85, "nesterov": True, **shape, **changes})


AVERAGES = {"swa": SWA(start=0.75, every=5), "ema": EMA(every=5), "lookahead": Lookahead(every=5)}
CIFAR = Data(name="cifar10", validation=5000, padding="reflect", flip="alternate")
GPU = Compute(precision="bfloat16", channels_last=True)
PRESETS = {
    "94": Preset(
        Recipe(
            data=replace(CIFAR, crop_padding=2),
            training=triangle(batch_size=1024, weight_decay=1.3e-3),
            late_phase=LatePhase(members=5),
            compute=GPU,
            **AVERAGES,
        ),
        partial(FastNetwork, widths=[64, 256, 256], depth=2),
        lengths=(6, 7, 8, 9, 10, 12, 14),
        rates=(1.0, 1.5),
        target=94.0,
        bias_rate=64.0,
    ),
    "96": Preset(
        Recipe(
            data=replace(CIFAR, crop_padding=4, cutout=12),
            training=triangle(batch_size=1024, weight_decay=1.3e-3),
            late_phase=LatePhase(members=5),
            compute=GPU,
            **AVERAGES,
        ),
        partial(FastNetwork, widths=[128, 384, 512], depth=3, residual=True),
        lengths=(20, 24, 28, 33, 40, 48),
        rates=(0.8, 1.2),
        target=96.0,
        bias_rate=64.0,
    ),
    "small": Preset(
        Recipe(
            data=replace(CIFAR, crop_padding=2, subset=1000, validation=3000),
            training=triangle(batch_size=20, weight_decay=1.3e-3),
            late_phase=LatePhase(members=5),
            compute=Compute(device="cpu", channels_last=True),
            **AVERAGES,
        ),
        partial(FastNetwork, widths=[16, 32, 32], depth=2, stride=2),
        lengths=(8, 11, 16, 23, 32),
        rates=(0.15, 0.3),
        target=48.0,
        bias_rate=1.0,
    ),
}


def tiny(preset: Preset) -> Preset:
    """The same preset at a size whose figures mean nothing, on images that are made up."""
    recipe = replace(
        preset.recipe,
        data=replace(preset.recipe.data, name="made up", subset=24, validation=8),
        training=replace(preset.recipe.training, batch_size=4),
        late_phase=LatePhase(members=2),
    )
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 10
    pixels = torch.randint(256, (40, 3, 32, 32), generator=generator, dtype=torch.uint8) // 2
    pixels += (12 * labels[:, None, None, None]).to(torch.uint8)
    images = Images(pixels, labels, tuple("0123456789"), "made up")
    hand_over(recipe.data, (images, images))
    assert isinstance(preset.network, partial)
    widths = [width // 16 for width in preset.network.keywords["widths"]]
    network = partial(preset.network, widths=widths)
    return replace(preset, recipe=recipe, network=network, lengths=(1, 2), target=1000.0)


class RisingLookahead(PlainLookahead):
    """Lookahead whose slow weights follow at first at once, later more and more slowly: 1 - 0.95^5 t^3 (airbench)."""

    def share(self, trajectory: Trajectory) -> float:
        """The part of the way; none after the last minibatch, so that the slow weights are the result."""
        t = (trajectory.step + 1) / trajectory.total
        return 0.0 if t == 1 else 1 - 0.95**5 * t**3


TRAININGS: dict[str, type[Method]] = METHODS | {"lookahead": RisingLookahead}


class FastTrajectory(Trajectory):
    """The training loop with a preset's network, smoothed labels and a rate of its own for BatchNorm's biases.

    Args:
        preset: network and loss.
        recipe: the setting, with its length.
        split: the images.
        seed: of everything that is drawn.
        method: the way to train.
        readings: the models to read off.
    """

    def __init__(
        self, preset: Preset, recipe: Recipe, split: Split, seed: int, method: Method, readings: Sequence[Reading]
    ) -> None:
        self.preset, self.split = preset, split
        super().__init__(recipe, split, seed, method, readings)

    @cached_property
    def patches(self) -> Tensor:
        """The normalised images that the first layer whitens."""
        return next(iter(self.batches.plain(self.split.train, PATCHES_FROM)))[0].cpu()

    def fresh_model(self, seed: int | None = None) -> nn.Module:
        """The preset's network with its initial weights."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed if seed is None else seed)
            model = self.preset.network(self.patches)
        return model.to(device=self.device, memory_format=torch.channels_last)

    def new_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD; a larger rate of the biases does not change what their weight decay takes away."""
        settings, rate = self.recipe.training, self.preset.bias_rate
        biases = [p for name, p in model.named_parameters() if "norms" in name and name.endswith("bias")]
        others = [p for p in model.parameters() if p.requires_grad and not any(p is bias for bias in biases)]
        own = {"params": biases, "rate": rate, "weight_decay": settings.weight_decay / rate}
        return torch.optim.SGD(
            [{"params": others}, own],
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def loss(self, x: Tensor, y: Tensor, model: nn.Module | None = None, slot: int | None = None) -> Tensor:
        """Mean cross-entropy with smoothed labels."""
        with self.autocast():
            logits = (self.model if model is None else model)(x)
        return functional.cross_entropy(logits.float(), y, label_smoothing=self.preset.smoothing)

    def evaluate(self) -> dict[str, float]:
        """Nothing: the clock runs, and only the end counts."""
        return {}
