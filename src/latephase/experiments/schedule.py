"""Learning rates in fractions of training: the paper's, in steps, half a cosine, or warm-up, plateau and decay."""

from __future__ import annotations

import math

from latephase.experiments.config import Training

#: The shapes that a learning rate can have.
SCHEDULES = ("linear", "cosine", "wsd")


def learning_rate(training: Training, fraction: float) -> float:
    """The learning rate of a minibatch.

    The paper's SGD rows (constant to epoch 100 of 200, linear to 0.001 at 180) are `constant_until=0.5,
    linear_until=0.9, final_lr=0.01`; its SWA rows are `0.4`, `0.72` and `0.5`. Its ImageNet rows (a tenth from epoch 10
    of 20 on) are `constant_until=1, linear_until=1, lr_drops=[0.5]`.

    With `cosine` it falls from the end of the warm-up w to the end of training, at the fraction f as
    final_lr + (1 - final_lr) (1 + cos(pi (f - w) / (1 - w))) / 2 (Loshchilov and Hutter, 2017, without restarts). With
    `wsd` (warm-up, stable, decay; Hu et al., 2024) it stays constant until `constant_until` and falls linearly from
    there to the end.

    Args:
        training: Initial and final learning rate, the two breakpoints and the drops.
        fraction: Share of all minibatches that were trained on before this one, from 0 to 1.

    Returns:
        The learning rate; without a warm-up `lr` for the first minibatch, with one 0.

    Example:
        >>> round(learning_rate(Training(lr=0.1, constant_until=0.5, linear_until=0.9, final_lr=0.01), 0.7), 6)
        0.0505
    """
    if fraction < training.warmup:
        return training.lr * (fraction / training.warmup)
    if training.schedule == "cosine":
        done = (fraction - training.warmup) / (1.0 - training.warmup)
        fallen = (1.0 - math.cos(math.pi * done)) / 2
        return training.lr * (1.0 - fallen * (1.0 - training.final_lr))
    begin, end = training.constant_until, 1.0 if training.schedule == "wsd" else training.linear_until
    dropped = training.lr * training.drop_factor ** sum(fraction >= drop for drop in training.lr_drops)
    if fraction < begin:
        return dropped
    if fraction >= end:
        return dropped * training.final_lr
    done = (fraction - begin) / (end - begin)
    return dropped * (1.0 - done * (1.0 - training.final_lr))


def steps_at(fraction: float, total: int) -> int:
    """The number of minibatches in a fraction of training, to the nearest one.

    Args:
        fraction: From 0 to 1.
        total: Minibatches of the whole training.

    Returns:
        A whole number from 0 to `total`.
    """
    return min(total, max(0, round(fraction * total)))
