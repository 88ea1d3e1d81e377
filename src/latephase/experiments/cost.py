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
from torch.utils.flop_counter import FlopCounterMode

from latephase.experiments.config import Model, Recipe
from latephase.experiments.device import pick_device, prepare_process
from latephase.experiments.methods import METHODS
from latephase.experiments.optimizers import make_optimizer
from latephase.experiments.plan import plan_seed
from latephase.experiments.samples import Characters, Images, samples_of


@dataclass(frozen=True)
class Cost:
    """The training of a recipe, evaluation not included.

    Attributes:
        minibatches: Of one run of a method that costs what plain training costs.
        all_minibatches: Of all methods and seeds; what they share is counted once.
        batch_size: Images or characters in a minibatch.
        flops_per_sample: Floating-point operations of forward and backward for one of them; a multiply-add is two.
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


def cost_of(recipe: Recipe, methods: Sequence[str] | None = None) -> Cost:
    """Count a recipe's minibatches and floating-point operations.

    Args:
        recipe: The recipe.
        methods: The methods to count; None takes the recipe's.

    Returns:
        The cost.

    Raises:
        ExperimentError: If there is no such model or method, or too little data for a minibatch.
    """
    samples, batch = samples_of(recipe), recipe.training.batch_size
    total = recipe.training.epochs * samples.per_epoch(batch)
    legs = plan_seed(recipe, recipe.methods if methods is None else methods, 0, total, Path())
    times = {leg.training: METHODS[leg.training](recipe).cost for leg in legs if leg.outputs}
    each_seed = sum((leg.until - leg.begin) * (times[leg.training] if leg.outputs else 1) for leg in legs)
    flops = _flops_per_sample(_plain(recipe.model), dataclasses.replace(samples, train=0))
    return Cost(total, each_seed * recipe.seeds, batch * samples.each, flops)


def parameters_of(recipe: Recipe) -> int:
    """Count the parameters of a recipe's model.

    Args:
        recipe: The recipe.

    Returns:
        Their number.
    """
    with torch.device("meta"):
        return sum(p.numel() for p in samples_of(recipe).build(_plain(recipe.model)).parameters())


@dataclass(frozen=True)
class Speed:
    """A measurement of training.

    Attributes:
        seconds_per_sample: Of a training step, over the images or characters of its minibatch.
        batch_size: Images or characters in the minibatches that were measured.
        steps: Their number.
    """

    seconds_per_sample: float
    batch_size: int
    steps: int


def measure(recipe: Recipe, seconds: float = 10.0, clock: Callable[[], float] = time.perf_counter) -> Speed:
    """Train on random images or characters for a few seconds on this device.

    The minibatches grow up to the recipe's as long as a step stays short, so that the largest model gives an answer on
    the slowest device. Data loading and evaluation are not included.

    Args:
        recipe: Model, data, optimizer, precision and device.
        seconds: How long; the steps that are under way are finished.
        clock: What tells the time.

    Returns:
        The speed of the largest minibatch.

    Raises:
        ExperimentError: If there is no such model or device.
    """
    samples, compute = samples_of(recipe), recipe.compute
    device = pick_device(compute.device)
    layout = torch.channels_last if compute.channels_last else torch.contiguous_format
    model = samples.build(_plain(recipe.model))
    model = model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    # Noise is no data to learn from: with a small learning rate the numbers stay ordinary ones.
    optimizer = make_optimizer(dataclasses.replace(recipe.training, lr=1e-4), model)
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    prepare_process(compute)

    def timed(n: int) -> float:
        x, y = samples.minibatch(n, device, layout)
        begun = clock()
        with torch.autocast(device.type, torch.bfloat16, enabled=compute.precision == "bfloat16"):
            logits = samples.logits(model(x))
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
    n *= samples.each
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


def _plain(config: Model) -> Model:
    """The model without the weights to start from, which cost nothing and may not be there."""
    return dataclasses.replace(config, pretrained=False, weights=None)


@lru_cache(maxsize=64)
def _flops_per_sample(config: Model, samples: Images | Characters) -> int:
    rows = 2
    # Without values a recurrent layer takes its steps one by one, which counts the products that its kernels hide.
    with torch.device("meta"):
        model = samples.build(config)
        x, _ = samples.minibatch(rows, torch.device("meta"), torch.contiguous_format)
    counter: Any = FlopCounterMode(display=False)
    with counter:
        samples.logits(model(x)).sum().backward()
    return int(counter.get_total_flops()) // (rows * samples.each)
