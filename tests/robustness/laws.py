"""What must hold of a model under a phase at any moment, worked out slowly and apart from the library."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

import latephase

Values = dict[str, Tensor]


def tensors(model: nn.Module) -> Values:
    """Copies of all that a model holds, by every name that it has."""
    held = itertools.chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name: tensor.detach().clone() for name, tensor in held}


def every_member(late: latephase.LatePhase) -> list[Values]:
    """What each member is as a whole."""
    held = []
    for k in range(late.members):
        with late.member(k) as model:
            held.append(tensors(model))
    return held


def difference(one: Values, other: Values, tolerance: float = 0.0) -> str:
    """Names, places and values in which two models differ; empty where they agree."""
    if one.keys() != other.keys():
        return f"names: {sorted(one.keys() ^ other.keys())}"
    for name, value in one.items():
        a, b = value.double(), other[name].double()
        if a.shape != b.shape:
            return f"{name}: shapes {tuple(a.shape)} and {tuple(b.shape)}"
        near = (a == b) | (a.isnan() & b.isnan()) | ((a - b).abs() <= tolerance * b.abs().clamp(min=1.0))
        if not bool(near.all()):
            return f"{name}: {value.flatten().tolist()[:6]} and {other[name].flatten().tolist()[:6]}"
    return ""


def tolerance(dtype: torch.dtype, factor: float = 8.0) -> float:
    """What rounding may do."""
    return 1e-9 if dtype == torch.float64 else factor * torch.finfo(dtype).eps


def slow_average(late: latephase.LatePhase, members: list[Values], products: bool) -> Values:
    """The averaged model in float64, under the plain names, from what every member is.

    Args:
        late: the phase.
        members: what `every_member` returned.
        products: whether it is the products of low-rank factors that are averaged, and not the factors.
    """
    model = late.model
    own = {name: torch.stack([member[name].double() for member in members]) for name in members[0]}
    mean = {name: stack.mean(0) for name, stack in own.items()}
    weights = dict(late.model.named_parameters(remove_duplicate=False))
    ours = {weights[name] for name in late.late_names()}
    for path, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, _NormBase) and layer.running_mean is not None:
            dot = f"{path}." if path else ""
            mean.update(_fold(layer, dot, own, layer.weight is not None and layer.weight in ours))
        for tensor in getattr(layer, "parametrizations", ()):
            prefix = f"{path}.parametrizations.{tensor}." if path else f"parametrizations.{tensor}."
            factors = layer.get_submodule(f"parametrizations.{tensor}.0")
            mean[f"{path}.{tensor}"] = _compose(factors, prefix, own, mean, products)
    return {name: mean[name].round() if "num_batches" in name else mean[name] for name in model.state_dict()}


def _fold(layer: _NormBase, dot: str, own: Values, into_affine: bool) -> Values:
    """The one layer whose eval outputs are the mean of the members'; the formulas of the paper's supplement."""
    mu, v = own[f"{dot}running_mean"], own[f"{dot}running_var"]
    if into_affine:
        s = own[f"{dot}weight"] / (v + layer.eps).sqrt()
        shift = (own[f"{dot}bias"] - s * mu).mean(0)
        weight = s.mean(0) * (v.mean(0) + layer.eps).sqrt()
        return {f"{dot}weight": weight, f"{dot}bias": shift + s.mean(0) * mu.mean(0)}
    s = 1 / (v + layer.eps).sqrt()
    return {
        f"{dot}running_mean": (s * mu).mean(0) / s.mean(0),
        f"{dot}running_var": 1 / s.mean(0).square() - layer.eps,
    }


def _compose(factors: nn.Module, prefix: str, own: Values, mean: Values, products: bool) -> Tensor:
    """A plain weight from its base and its factors."""
    base, inner = mean[f"{prefix}original"], f"{prefix}0."
    kind = type(factors).__name__
    if kind == "RankOneFactors":
        ones = (1,) * (base.ndim - 2)
        return base * mean[f"{inner}row"].view(-1, 1, *ones) * mean[f"{inner}column"].view(1, -1, *ones)
    if kind == "LowRank":
        up, down = own[f"{inner}up"], own[f"{inner}down"]
        product = (up @ down).mean(0) if products else up.mean(0) @ down.mean(0)
        return base + factors.scale * product.view(base.shape)
    blocks = torch.tensordot(mean[f"{inner}embedding"], mean[f"{inner}bank.templates"], 1)
    return base + torch.cat(list(blocks), factors.axis)


def hooks(model: nn.Module) -> list[str]:
    """Everything by which a module differs from one of its class as it comes: hooks, parametrizations, methods."""
    found = []
    for path, module in model.named_modules():
        kept = [name for name, value in vars(module).items() if name.endswith("_hooks") and value]
        found += [f"{path}.{name}" for name in (*kept, *({"train", "forward", "eval"} & vars(module).keys()))]
        found += [f"{path}: {type(module).__name__}"] * (type(module).__name__.startswith("Parametrized"))
    for name, parameter in model.named_parameters():
        found += [f"{name}: gradient hooks"] * bool(parameter._post_accumulate_grad_hooks)
    return found


def optimizer_values(optimizers: list[torch.optim.Optimizer]) -> Iterator[tuple[str, Any]]:
    """All numbers that optimizers hold, with a place each."""
    for i, optimizer in enumerate(optimizers):
        for key, state in optimizer.state_dict()["state"].items():
            yield from ((f"{i}.{key}.{name}", value) for name, value in state.items())
