"""Algorithm 1 taken literally, for many independent runs of one scheme side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latephase.experiments.real_network.schemes import Scheme

#: Gradients (R, n) of the weights (R, n) over the minibatches of samples (R, B).
Gradients = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Runs:
    """What the runs of a scheme passed through.

    Attributes:
        average: Averaged models' weights at each count, (counts, R, n).
        member: The first members' weights, (counts, R, n); members are alike.
    """

    average: Tensor
    member: Tensor


def draw(samples: int, replicas: int, minibatches: int, batch_size: int, seed: int) -> Tensor:
    """The minibatches of all runs, drawn with replacement; every scheme gets the same.

    Args:
        samples: Number of samples to draw from.
        replicas: Number of runs R.
        minibatches: Of each run.
        batch_size: Samples in a minibatch.
        seed: Seed of the draws.

    Returns:
        int64, (minibatches, R, batch_size).
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(samples, (minibatches, replicas, batch_size), generator=generator)


def run(scheme: Scheme, gradients: Gradients, start: Tensor, minibatches: Tensor, counts: Sequence[int]) -> Runs:
    """Train.

    Args:
        scheme: Members and rates.
        gradients: Minibatch gradients.
        start: Where every run begins, (n,).
        minibatches: From `draw`.
        counts: Increasing numbers of minibatches at which the weights are kept, whole rounds.

    Returns:
        The weights.
    """
    members, replicas = scheme.members, minibatches.shape[1]
    theta = start.repeat(replicas, 1)
    phi = torch.zeros(members, replicas, len(start), dtype=start.dtype)
    alike = not bool(scheme.late_lr.any())
    average, member, now = [], [], 0
    for count in counts:
        for begin in range(now, count, members):
            index = minibatches[begin : begin + members]
            if alike:  # the members' minibatches at one point are one minibatch
                total = members * gradients(theta, index.transpose(0, 1).flatten(1))
            else:
                weights = (theta + phi).flatten(0, 1)
                each = gradients(weights, index.flatten(0, 1)).view_as(phi)
                phi = phi - scheme.late_lr * each
                total = each.sum(0)
            theta = theta - scheme.scale * scheme.base_lr * total
        now = count
        average.append(theta + phi.mean(0))
        member.append(theta + phi[0])
    return Runs(torch.stack(average), torch.stack(member))
