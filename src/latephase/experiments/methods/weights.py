"""Which weights a recipe calls late-phase, and a weight decay of their own for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from latephase import LatePhase
from latephase.experiments.errors import ExperimentError


def late_parameters(model: nn.Module, weights: Sequence[str]) -> list[nn.Parameter]:
    """The parameters that late-phase training of this model would replicate.

    Args:
        model: The model; it is as it was afterwards.
        weights: Families that choose among the model's own parameters: `norm`, `head` or `full`.

    Returns:
        Those parameters.

    Raises:
        ExperimentError: If a family adds parameters of its own, which a model without members does not have.
    """
    late = LatePhase(model, members=1, weights=tuple(weights))
    chosen = late.late_parameters()
    late.collapse()
    own = set(model.parameters())
    if not own.issuperset(chosen):
        raise ExperimentError(f"late_phase.weights = {list(weights)} adds weights to the model: there is no twin of it")
    return chosen


def own_weight_decay(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], weight_decay: float | None
) -> None:
    """Move parameters into an optimizer group with a weight decay of its own.

    Args:
        optimizer: The optimizer; its state is kept.
        parameters: Parameters of its groups.
        weight_decay: Their weight decay; None leaves the optimizer as it is.
    """
    if weight_decay is None:
        return
    moved = set(parameters)
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p not in moved]
    group = optimizer.param_groups[0]
    settings = {key: value for key, value in group.items() if key != "params"}
    optimizer.add_param_group({**settings, "params": list(parameters), "weight_decay": weight_decay})


def base_weight_decay(optimizer: torch.optim.Optimizer, late: Sequence[nn.Parameter], factor: float) -> None:
    """Multiply the weight decay of the base weights.

    Args:
        optimizer: The optimizer; its state is kept.
        late: The late-phase weights, whose weight decay stays as it is.
        factor: What the others' is multiplied by.
    """
    chosen = set(late)
    for group in list(optimizer.param_groups):
        theirs = [p for p in group["params"] if p in chosen]
        if len(theirs) == len(group["params"]):
            continue
        if theirs:
            own_weight_decay(optimizer, theirs, group["weight_decay"])
        group["weight_decay"] *= factor
