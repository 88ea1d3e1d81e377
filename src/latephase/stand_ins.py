"""All members' weights in one call of an optimizer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn
from torch.optim import Optimizer

from .distributed import State


@contextmanager
def standing_in(
    optimizer: Optimizer, states: Sequence[State], rows: Mapping[nn.Parameter, Sequence[nn.Parameter]]
) -> Iterator[None]:
    """Context in which an optimizer holds every member's own weights, in place of all that it held.

    An optimizer knows its parameters one by one, so that one step of all is a step of each.

    Args:
        optimizer: a torch optimizer.
        states: every member's state by the late-phase weight; these are what the optimizer updates.
        rows: every member's own weight by the late-phase weight.
    """
    every = [(weight, row, state) for weight, own in rows.items() for row, state in zip(own, states, strict=True)]
    before = [group["params"] for group in optimizer.param_groups]
    for weight, row, state in every:
        if weight in state:
            optimizer.state[row] = state[weight]
    try:
        for group in optimizer.param_groups:
            group["params"] = [row for parameter in group["params"] for row in rows.get(parameter, ())]
        yield
    finally:
        for group, params in zip(optimizer.param_groups, before, strict=True):
            group["params"] = params
        for weight, row, state in every:
            if row in optimizer.state:
                state[weight] = optimizer.state.pop(row)
