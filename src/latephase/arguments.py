"""Checks of the arguments of `LatePhase`, each with what would work."""

import math
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from .errors import LatePhaseValueError

UNSUPPORTED = {
    "DeepSpeedEngine": "DeepSpeed steps copies of the weights that no optimizer hook sees; use DistributedDataParallel",
    "FullyShardedDataParallel": "it flattens late-phase and base weights into one tensor; use fully_shard (FSDP2)",
    "XlaFullyShardedDataParallel": "XLA runs steps later than they are called; train on a GPU or the CPU",
}
"""Wrappers that step other weights than those of the model's modules, by the names of their classes."""


def _refuse_wrappers(model: nn.Module) -> None:
    for module in model.modules():
        for base in type(module).__mro__:
            if base.__name__ in UNSUPPORTED:
                raise LatePhaseValueError(f"model: {base.__name__}: {UNSUPPORTED[base.__name__]}")
    if any(parameter.device.type == "xla" for parameter in model.parameters()):
        raise LatePhaseValueError(
            "model: its weights are on an XLA device, which runs steps later than they are called, so that members "
            "cannot take turns in between; train on a GPU or the CPU"
        )


def unwrap(model: nn.Module) -> tuple[nn.Module, DistributedDataParallel | None]:
    """The user's model inside DDP and torch.compile wrappers, so that names do not depend on them."""
    if not isinstance(model, nn.Module):
        raise LatePhaseValueError(f"model: {type(model).__name__} is no torch.nn.Module")
    _refuse_wrappers(model)
    ddp = None
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            ddp = model if isinstance(model, DistributedDataParallel) else ddp
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model, ddp


def gamma(base_gradient: str | float, members: int) -> float:
    """The factor on the sum of the members' base gradients."""
    if isinstance(base_gradient, str):
        if base_gradient not in ("sum", "mean"):
            raise LatePhaseValueError(f"base_gradient: {base_gradient!r}; use 'sum', 'mean' or a positive number")
        return 1.0 if base_gradient == "sum" else 1.0 / members
    if not (math.isfinite(base_gradient) and base_gradient > 0):
        raise LatePhaseValueError(f"base_gradient: {base_gradient}; use 'sum', 'mean' or a positive number")
    return float(base_gradient)


def choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """The value, if it is one of the choices."""
    if value not in choices:
        raise LatePhaseValueError(f"{name}: {value!r}; use one of {', '.join(map(repr, choices))}")
    return value


def torch_optimizer(optimizer: Any, model: nn.Module) -> Optimizer:
    """The torch optimizer inside Lightning's and Accelerate's wrappers.

    Raises:
        LatePhaseValueError: it is none, or it holds none of the model's parameters.
    """
    inner = optimizer
    while isinstance(within := getattr(inner, "optimizer", None), Optimizer):
        inner = within
    if not isinstance(inner, Optimizer):
        raise LatePhaseValueError(f"optimizer: {type(optimizer).__name__} is no torch.optim.Optimizer")
    ours = set(model.parameters())
    if not any(p in ours for group in inner.param_groups for p in group["params"]):
        raise LatePhaseValueError(
            f"optimizer: {type(inner).__name__} holds none of the parameters of {type(model).__name__}; build it from "
            "model.parameters() of the model that LatePhase was given"
        )
    return inner
