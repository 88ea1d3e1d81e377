"""Small arithmetic on gradients and optimizer states."""

from typing import Any

import torch
from torch import Tensor, nn

from .averaging import exact_mean, rounded


def owned(gradient: Tensor) -> Tensor:
    """A gradient that nobody else writes to.

    DDP's buckets and the pools of CUDA graphs are written again by the next backward; on a CPU a gradient with storage
    of its own is taken as it is.
    """
    if gradient.layout != torch.strided:
        return gradient
    alone = gradient._base is None and gradient.untyped_storage().nbytes() == gradient.nbytes
    return gradient if alone and gradient.device.type == "cpu" else gradient.clone()


def add_up(sums: dict[nn.Parameter, Tensor], gradients: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Add every parameter's gradient to its sum; a first one becomes the sum. Sparse ones too."""
    known, new = [], []
    for parameter, gradient in gradients:
        total = sums.get(parameter)
        if total is None:
            sums[parameter] = owned(gradient)
        elif total.layout == gradient.layout == torch.strided:
            known.append(total)
            new.append(gradient)
        else:
            sums[parameter] = total + gradient
    if known:
        torch._foreach_add_(known, new)


def cloned(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of one parameter's optimizer state."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}


def mean_state(values: list[Any]) -> Any:
    """The mean of the members' entries where they are numbers with a mean; else the first."""
    if isinstance(values[0], Tensor) and values[0].is_floating_point():
        return rounded(exact_mean(torch.stack(values)), values[0])
    return values[0]
