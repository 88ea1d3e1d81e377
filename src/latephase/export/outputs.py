"""What a model returned, as tensors: which of them are logits, and how far two outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from latephase.errors import LatePhaseValueError


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors of an output, in the order in which every format lists them.

    Args:
        outputs: A tensor, or a tuple, list or dict that holds tensors.

    Returns:
        The tensors.
    """
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def logits_of(outputs: Any) -> Tensor:
    """The logits of an output: what is called so, else its first floating-point tensor.

    Args:
        outputs: What a classifier or a language model returned.

    Returns:
        (..., classes).

    Raises:
        LatePhaseValueError: The output holds no floating-point tensor.
    """
    named = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if isinstance(named, Tensor):
        return named
    for tensor in tensors_of(outputs):
        if tensor.is_floating_point():
            return tensor
    raise LatePhaseValueError(f"an output of {type(outputs).__name__} holds no floating-point tensor, hence no logits")


def fewer(args: Any, samples: int | None = None) -> Any:
    """Inputs of fewer samples, to trace a graph with that is then tried with all of them.

    Args:
        args: A tree of inputs, (N, ...) each.
        samples: How many to take; None takes all but one, and at least two.

    Returns:
        The same tree of the first samples.

    Example:
        >>> import torch
        >>> fewer((torch.tensor([1, 2, 3]), None))
        (tensor([1, 2]), None)
    """

    def part(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return leaf
        return leaf[: max(2, len(leaf) - 1) if samples is None else samples]

    return tree_map(part, args)


@dataclass(frozen=True)
class Agreement:
    """How far two outputs for one batch are apart.

    Attributes:
        largest: The largest absolute difference of any two numbers, over all tensors of the outputs.
        scale: The largest absolute value among the first output's numbers, to judge the difference by.
        top1: How often both logits have their maximum in the same place; None where these are no logits.
        predictions: How many pairs of rows of logits were compared.
    """

    largest: float
    scale: float
    top1: float | None
    predictions: int

    @classmethod
    def of(cls, ours: Any, theirs: Any) -> Agreement:
        """Compare two outputs.

        Args:
            ours: What the model returned.
            theirs: What should be the same; shapes and order of the tensors must agree.

        Returns:
            The comparison; differences are computed in float64. A number that is not finite in one output alone
            makes the difference infinite.

        Raises:
            LatePhaseValueError: The outputs hold different numbers of tensors, or tensors of other shapes.

        Example:
            >>> import torch
            >>> Agreement.of(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.5, 3.0]]))
            Agreement(largest=0.5, scale=3.0, top1=1.0, predictions=1)
        """
        first, second = tensors_of(ours), tensors_of(theirs)
        shapes = [tuple(tensor.shape) for tensor in first], [tuple(tensor.shape) for tensor in second]
        if shapes[0] != shapes[1]:
            raise LatePhaseValueError(f"outputs of shapes {shapes[0]} and {shapes[1]} cannot be compared")
        largest = scale = 0.0
        for a, b in zip(first, second, strict=True):
            if a.numel():
                largest = max(largest, _distance(a, b.to(a.device)))
                scale = max(scale, a.detach().double().abs().max().item())
        a, b = logits_of(ours).detach(), logits_of(theirs).detach()
        if a.ndim < 2 or not a.numel():
            return cls(largest, scale, None, 0)
        same = (a.argmax(-1).cpu() == b.argmax(-1).cpu()).double()
        return cls(largest, scale, same.mean().item(), same.numel())

    def __str__(self) -> str:
        text = f"{self.largest:.2g} at most, of values up to {self.scale:.2g}"
        return text if self.top1 is None else f"{text}; the same class in {self.top1:.2%} of {self.predictions:,}"


def _distance(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    # Equal infinities, such as masked logits, are no difference; their subtraction is not a number.
    apart = (a - b).abs().where(a != b, 0.0).max().item()
    return math.inf if math.isnan(apart) else apart
