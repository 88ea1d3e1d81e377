"""What a recipe costs: minibatches and operations, counted; hours, estimated from a short measurement."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from latephase.experiments.config import Model, Recipe
from latephase.experiments.data import load_images
from latephase.experiments.device import pick_device, prepare_process
from latephase.experiments.errors import ExperimentError
from latephase.experiments.methods import METHODS
from latephase.experiments.models import build_model
from latephase.experiments.plan import plan_seed


@dataclass(frozen=True)
class Images:
    """What the cost of a recipe depends on of its images.

    Attributes:
        channels: Channels of an image.
        size: Its side in pixels.
        classes: Number of classes.
        train: Number of images to train on.
    """

    channels: int
    size: int
    classes: int
    train: int


@dataclass(frozen=True)
class Cost:
    """The training of a recipe, evaluation not included.

    Attributes:
        minibatches: Of one run of a method that costs what plain training costs.
        all_minibatches: Of all methods and seeds; what they share is counted once.
        batch_size: Images in a minibatch.
        flops_per_sample: Floating-point operations of forward and backward for one image; a multiply-add is two.
    """

    minibatches: int
    all_minibatches: int
    batch_size: int
    flops_per_sample: int

    @property
    def flops(self) -> float:
        """Operations of one run."""
        return float(self.minibatches * self.batch_size * self.flops_per_sample)

    @property
    def all_flops(self) -> float:
        """Operations of all runs."""
        return float(self.all_minibatches * self.batch_size * self.flops_per_sample)


# Channels, side, classes, training images and whether there are test images beside them.
_KNOWN = {
    "digits": (1, 8, 10, 1797, False),
    "cifar10": (3, 32, 10, 50_000, True),
    "cifar100": (3, 32, 100, 50_000, True),
}


def images_of(recipe: Recipe) -> Images:
    """What a recipe trains on, without its files where that is known.

    Args:
        recipe: The recipe.

    Returns:
        The published data sets as they are, image folders as `data.images` and `data.classes` say; anything else is
        read.

    Raises:
        ExperimentError: If it has to be read and cannot be.
    """
    data = recipe.data
    if data.name in _KNOWN:
        channels, size, classes, n, has_test = _KNOWN[data.name]
    elif data.images is not None and data.classes is not None and data.image_size is not None:
        channels, size, classes, n, has_test = 3, data.image_size, data.classes, data.images, data.test is not None
    else:
        images, test = load_images(data)
        channels, _, size = images.shape
        classes, n, has_test = len(images.classes), len(images), test is not None
    held_out = data.validation + (0 if has_test else data.test_images if data.test_images is not None else n // 3)
    return Images(channels, size, classes, data.subset or n - held_out)


def cost_of(recipe: Recipe, methods: Sequence[str] | None = None) -> Cost:
    """Count a recipe's minibatches and floating-point operations.

    Args:
        recipe: The recipe.
        methods: The methods to count; None takes the recipe's.

    Returns:
        The cost.

    Raises:
        ExperimentError: If there is no such model or method, or too few images for a minibatch.
    """
    images = images_of(recipe)
    batch = recipe.training.batch_size
    if batch > images.train:
        raise ExperimentError(f"training.batch_size = {batch} is more than the {images.train} images to train on")
    total = recipe.training.epochs * (images.train // batch)
    legs = plan_seed(recipe, recipe.methods if methods is None else methods, 0, total, Path())
    times = {leg.training: METHODS[leg.training](recipe).cost for leg in legs if leg.outputs}
    each_seed = sum((leg.until - leg.begin) * (times[leg.training] if leg.outputs else 1) for leg in legs)
    plain = dataclasses.replace(recipe.model, pretrained=False, weights=None)
    flops = _flops_per_sample(plain, images.channels, images.size, images.classes)
    return Cost(total, each_seed * recipe.seeds, batch, flops)


@dataclass(frozen=True)
class Speed:
    """A measurement of training.

    Attributes:
        seconds_per_sample: Of a training step, over the images of its minibatch.
        batch_size: Images in the minibatches that were measured.
        steps: Their number.
    """

    seconds_per_sample: float
    batch_size: int
    steps: int


def measure(recipe: Recipe, seconds: float = 10.0, clock: Callable[[], float] = time.perf_counter) -> Speed:
    """Train on random images for a few seconds on this device.

    The minibatches grow up to the recipe's as long as a step stays short, so that the largest model gives an answer on
    the slowest device. Data loading and evaluation are not included.

    Args:
        recipe: Model, images, precision and device.
        seconds: How long; the steps that are under way are finished.
        clock: What tells the time.

    Returns:
        The speed of the largest minibatch.

    Raises:
        ExperimentError: If there is no such model or device.
    """
    images, compute = images_of(recipe), recipe.compute
    device = pick_device(compute.device)
    layout = torch.channels_last if compute.channels_last else torch.contiguous_format
    plain = dataclasses.replace(recipe.model, pretrained=False, weights=None)
    model = build_model(plain, classes=images.classes, channels=images.channels, size=images.size, seed=0)
    model = model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    prepare_process(compute)

    def timed(n: int) -> float:
        x = torch.randn(n, images.channels, images.size, images.size, device=device).to(memory_format=layout)
        y = torch.randint(images.classes, (n,), device=device)
        begun = clock()
        with torch.autocast(device.type, torch.bfloat16, enabled=compute.precision == "bfloat16"):
            logits = model(x)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), y).backward()
        optimizer.step()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return clock() - begun

    try:
        end = clock() + seconds
        n = min(2, recipe.training.batch_size)
        timed(n)
        taken = [timed(n)]
        while n < recipe.training.batch_size and 2 * taken[0] < seconds / 4 and clock() < end:
            n = min(2 * n, recipe.training.batch_size)
            taken = [timed(n)]
        while clock() + taken[-1] < end:
            taken.append(timed(n))
    finally:
        torch.set_num_threads(threads)
        torch.backends.mkldnn.enabled = onednn
    return Speed(sorted(taken)[len(taken) // 2] / n, n, len(taken))


def quantity(value: float) -> str:
    """A large number with three digits and the prefix of its thousands.

    Args:
        value: At least 1.

    Returns:
        Such as `314 P` for 3.14e17.

    Example:
        >>> quantity(3.14e17)
        '314 P'
    """
    prefixes = ["", "k", "M", "G", "T", "P", "E", "Z"]
    power = 0
    while value >= 999.5 and power < len(prefixes) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {prefixes[power]}".rstrip()


@lru_cache(maxsize=64)
def _flops_per_sample(config: Model, channels: int, size: int, classes: int) -> int:
    n = 2
    with torch.device("meta"):
        model: nn.Module = build_model(config, classes=classes, channels=channels, size=size, seed=0)
        x = torch.empty(n, channels, size, size)
    counter: Any = FlopCounterMode(display=False)
    with counter:
        model(x).sum().backward()
    return int(counter.get_total_flops()) // n
