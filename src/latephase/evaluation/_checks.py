"""Checks that the evaluations share; every message names the thing, its value and what would work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from latephase.errors import LatePhaseError, LatePhaseValueError

Batches = TypeVar("Batches", bound=Iterable[Any])


def again(what: str, batches: Batches) -> Batches:
    """The batches, if they can be iterated over more than once."""
    if iter(batches) is batches:
        raise LatePhaseValueError(
            f"{what}: a {type(batches).__name__} is spent after one pass and several are needed; pass a list of "
            "minibatches, a DataLoader, or any object whose __iter__ starts anew"
        )
    return batches


def plain(what: str, model: nn.Module) -> nn.Module:
    """The model, if no late phase has its members in it."""
    if any(getattr(m.__dict__.get("train"), "members_share_the_model", False) for m in model.modules()):
        raise LatePhaseError(
            f"{what}: the members of a late phase share this {type(model).__name__}; load "
            "late.averaged_state_dict() into a plain copy of the model, and pass that"
        )
    return model


def classified(what: str, logits: Any, labels: Tensor, *, members: bool = False) -> None:
    """Logits (N, classes), or (K, N, classes) for members, that fit the labels (N,)."""
    shape, dims = ("(K, N, classes)", 3) if members else ("(N, classes)", 2)
    if not isinstance(logits, Tensor) or logits.ndim != dims:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise LatePhaseValueError(f"{what}: the model's output is {got}; logits of shape {shape} are needed")
    if labels.ndim != 1 or len(labels) != logits.shape[-2]:
        raise LatePhaseValueError(
            f"{what}: labels of shape {tuple(labels.shape)} beside logits of shape {tuple(logits.shape)}; labels are "
            f"class indices of shape ({logits.shape[-2]},)"
        )
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise LatePhaseValueError(f"{what}: labels of dtype {labels.dtype}; labels are integer class indices")
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < logits.shape[-1]):
        raise LatePhaseValueError(
            f"{what}: labels from {int(labels.min())} to {int(labels.max())}, but the model has {logits.shape[-1]} "
            f"classes, 0 to {logits.shape[-1] - 1}; the data and the model do not belong together"
        )


def finite(what: str, values: Tensor) -> Tensor:
    """The values, if all are finite."""
    bad = values.numel() - int(values.isfinite().sum())
    if bad:
        raise LatePhaseValueError(f"{what}: {bad} of {values.numel()} values are infinite or not a number")
    return values


def at_least(what: str, value: int, least: int) -> int:
    """The number, if it is large enough."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise LatePhaseValueError(f"{what}: {value!r}; use a whole number of at least {least}")
    return value
