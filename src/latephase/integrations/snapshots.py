"""Snapshots: the running mean of averaged models, taken now and then."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import LatePhaseValueError


class Snapshots:
    """Stochastic weight averaging of what the late phase hands over: a mean of state dicts in float64, rounded once.

    What is not floating-point (counters of batches) is that of the last snapshot. Running statistics are averaged like
    weights; whoever wants them exact recomputes them at the end.

    Attributes:
        count: snapshots taken.

    Source: Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018.

    Example:
        >>> snapshots = Snapshots()
        >>> for step, value in enumerate((1.0, 2.0)):
        ...     snapshots.add({"weight": torch.tensor([value])}, step)
        >>> snapshots.mean()["weight"]
        tensor([1.5000])
    """

    def __init__(self) -> None:
        self.count = 0
        self._step = -1
        self._sum: dict[str, Tensor] = {}
        self._last: dict[str, Any] = {}

    def add(self, state: Mapping[str, Any], step: int) -> None:
        """Take in one model.

        Args:
            state: its state dict; kept, so it should be a copy.
            step: optimizer steps so far; the second snapshot of one step, as after resuming from a checkpoint that was
                saved right behind the first, is passed over.
        """
        if step == self._step:
            return
        self._step = step
        self.count += 1
        self._last = dict(state)
        for name, value in state.items():
            if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
                wide = value.to(torch.promote_types(value.dtype, torch.float64))
                self._sum[name] = self._sum[name].to(wide.device) + wide if name in self._sum else wide.clone()

    def mean(self) -> "OrderedDict[str, Any]":
        """The state dict of the mean, with the keys and in the order of the last snapshot."""
        return OrderedDict(
            (name, (self._sum[name] / self.count).to(value.dtype) if name in self._sum else value)
            for name, value in self._last.items()
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that resumes it: tensors and numbers in dicts."""
        return {"count": self.count, "step": self._step, "sum": self._sum, "last": self._last}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume from `state_dict()`.

        Args:
            state_dict: what it returned.
        """
        self.count, self._step = state_dict["count"], state_dict["step"]
        self._sum, self._last = dict(state_dict["sum"]), dict(state_dict["last"])


def check_every(steps: int | None) -> int | None:
    """The argument `swa_every`: optimizer steps from one snapshot to the next; None for epochs.

    Args:
        steps: what the user gave.

    Returns:
        The same.

    Raises:
        LatePhaseValueError: it is neither None nor a whole number of at least 1.
    """
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise LatePhaseValueError(f"swa_every: {steps!r}; use a whole number of optimizer steps, or None for epochs")
    return steps
