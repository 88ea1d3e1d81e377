"""Arithmetic on plain state dicts: which tensors are weights, affine combinations, distances."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from latephase.errors import LatePhaseValueError

State = Mapping[str, Tensor]
"""A plain model's state dict."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def is_statistic(name: str) -> bool:
    """Whether a tensor is a normalisation layer's running statistic, by its name.

    Args:
        name: Key of a state dict.

    Returns:
        True for `running_mean`, `running_var` and `num_batches_tracked`.
    """
    return name.rpartition(".")[2] in _STATISTICS


def weight_names(state: State) -> list[str]:
    """Names of the weights: every tensor of real numbers that is no running statistic.

    Args:
        state: A plain state dict.

    Returns:
        The names, in order.
    """
    return [name for name, tensor in state.items() if tensor.is_floating_point() and not is_statistic(name)]


def check_states(what: str, states: Sequence[State], least: int) -> None:
    """Check that state dicts belong to one model.

    Args:
        what: Who asks, for messages.
        states: The state dicts.
        least: How many there must be.

    Raises:
        LatePhaseValueError: Too few, keys or shapes that differ, or values that are not finite.
    """
    if len(states) < least:
        raise LatePhaseValueError(f"{what}: {len(states)} state dicts; it needs at least {least}")
    first = states[0]
    for i, state in enumerate(states):
        if state.keys() != first.keys():
            odd = sorted(state.keys() ^ first.keys())
            raise LatePhaseValueError(
                f"{what}: state dict {i} and state dict 0 hold different keys ({', '.join(odd[:5])}); all must be of "
                "one model"
            )
        for name, tensor in state.items():
            if tensor.shape != first[name].shape:
                raise LatePhaseValueError(
                    f"{what}: {name!r} has shape {tuple(tensor.shape)} in state dict {i} and "
                    f"{tuple(first[name].shape)} in state dict 0; all must be of one model"
                )
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise LatePhaseValueError(f"{what}: {name!r} of state dict {i} is not finite")
    if not weight_names(first):
        raise LatePhaseValueError(f"{what}: the state dicts hold no weights")


def combine(states: Sequence[State], coefficients: Sequence[float]) -> OrderedDict[str, Tensor]:
    """An affine combination of state dicts, in float64 and rounded once.

    Tensors that are equal in all states (shared base weights) stay exactly what they are. Running variances are held
    at or above the smallest of the states, which matters only where a coefficient is negative; counts are the first
    state's.

    Args:
        states: Plain state dicts of one model.
        coefficients: One for each state; they sum to 1.

    Returns:
        The combined state dict.

    Raises:
        LatePhaseValueError: Coefficients that do not sum to 1.

    Example:
        >>> a, b = {"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, 2.0])}
        >>> combine([a, b], [0.75, 0.25])["w"]
        tensor([1., 2.])
    """
    if len(coefficients) != len(states) or abs(sum(coefficients) - 1) > 1e-9:
        raise LatePhaseValueError(
            f"combine: coefficients {tuple(coefficients)} of {len(states)} state dicts; one each, with sum 1"
        )
    combined: OrderedDict[str, Tensor] = OrderedDict()
    for name, first in states[0].items():
        others = [state[name] for state in states[1:]]
        if not first.is_floating_point() or all(t is first or torch.equal(t, first) for t in others):
            combined[name] = first
            continue
        value = first.double()
        # As the first and differences from it, which are exactly zero wherever the states agree.
        for tensor, coefficient in zip(others, coefficients[1:], strict=True):
            value = value + coefficient * (tensor.double() - first.double())
        if name.rpartition(".")[2] == "running_var":
            value = value.maximum(torch.stack([first, *others]).amin(dim=0).double())
        combined[name] = value.to(first.dtype)
    return combined


def inner(a: State, b: State, c: State, d: State) -> float:
    """Inner product of the weights' differences, <a - b, c - d>, in float64.

    Args:
        a: A plain state dict.
        b: Another.
        c: Another.
        d: Another.

    Returns:
        The sum over all weights; running statistics do not count.
    """
    total = 0.0
    for name in weight_names(a):
        if a[name] is not b[name] and c[name] is not d[name]:
            total += float(((a[name].double() - b[name].double()) * (c[name].double() - d[name].double())).sum())
    return total


def distance(a: State, b: State) -> float:
    """Euclidean distance of the weights of two state dicts.

    Args:
        a: A plain state dict.
        b: Another of the same model.

    Returns:
        The distance; running statistics do not count.

    Example:
        >>> import torch
        >>> distance({"weight": torch.zeros(4)}, {"weight": torch.ones(4)})
        2.0
    """
    return inner(a, b, a, b) ** 0.5
