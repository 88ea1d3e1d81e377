"""What the tests of the landscape share: a row of the table, data, and a loss known in closed form."""

import torch

from cases import Case
from latephase.evaluation.landscape import LossAndError

CASE = Case()  # BatchNorm with and without affine weights, norm + head late-phase


def data(count=3, size=9, first=60):
    return list(CASE.batches(count, size=size, first=first))


def quadratic(state):
    """A loss of every weight, known in closed form: the squared distance from the point of all ones."""
    return LossAndError(
        sum(float((t.double() - 1).square().sum()) for n, t in state.items() if "running" not in n), 0.25
    )


def random_states(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (3, 2), "a.bias": (3,), "b.weight": (2, 3)}
    return [
        {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()} for _ in range(count)
    ]


def flat(state):
    return torch.cat([t.flatten() for t in state.values()])
