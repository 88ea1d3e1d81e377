"""Small arithmetic on gradients and optimizer states."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .averaging import exact_mean, rounded
from .sharding import local, placed


def owned(gradient: Tensor) -> Tensor:
    """A gradient that nobody else writes to.

    DDP's buckets and the pools of CUDA graphs are written again by the next backward; on a CPU a gradient with storage
    of its own is taken as it is.
    """
    if gradient.layout != torch.strided:
        return gradient
    part = local(gradient)
    alone = part._base is None and part.untyped_storage().nbytes() == part.nbytes
    return gradient if alone and gradient.device.type == "cpu" else gradient.clone()


def add_up(sums: dict[nn.Parameter, Tensor], gradients: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Add every parameter's gradient to its sum; a first one becomes the sum. Sparse ones too."""
    known, new = [], []
    for parameter, gradient in gradients:
        total = sums.get(parameter)
        if total is None:
            sums[parameter] = owned(gradient)
        elif total.layout == gradient.layout == torch.strided:
            known.append(local(total))
            new.append(local(gradient))
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
        stack = torch.stack([local(value) for value in values])
        return placed(rounded(exact_mean(stack), stack), values[0])
    return values[0]


def moves_nothing(optimizer: Optimizer) -> bool:
    """Whether a step is none of training: torch.distributed.checkpoint makes an optimizer's states by an empty step.

    All learning rates and gradients are zero in it. It takes an optimizer without states, such as plain SGD, for one
    that has not stepped yet, and so does this at every checkpoint.
    """
    rates = [group.get("lr") for group in optimizer.param_groups]
    if optimizer.state or any(rate is None or (isinstance(rate, Tensor) and rate.is_cuda) or rate for rate in rates):
        return False
    held = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    return all(p.grad is not None and not local(p.grad).any() for p in held)
