"""Lookahead (Zhang, Lucas, Hinton and Ba, NeurIPS 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latephase.experiments.methods.method import Method

if TYPE_CHECKING:
    from latephase.experiments.trajectory import Trajectory


class Lookahead(Method):
    """SGD on fast weights; once in n minibatches the slow weights go a part of the way to them, and the fast ones back.

    slow <- slow + rate (fast - slow), fast <- slow. The fast weights keep their momentum. The last minibatch is always
    followed by such a step, so that the result is the slow weights, whose BatchNorm statistics are the fast ones'.
    """

    name = "lookahead"
    label = "Lookahead"
    summary = "slow weights that follow SGD's half of the way every few minibatches"

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self._slow: list[Tensor] = []

    @property
    def start(self) -> float:
        """The first minibatch."""
        return 0.0

    def begin(self, trajectory: Trajectory) -> None:
        """The slow weights are the initial ones."""
        self._slow = [p.detach().clone() for p in trajectory.model.parameters()]

    def step(self, trajectory: Trajectory, x: Tensor, y: Tensor) -> Tensor:
        """A step of SGD, and when its turn has come one of the slow weights."""
        loss = super().step(trajectory, x, y)
        done = trajectory.step + 1
        if done % self.recipe.lookahead.every == 0 or done == trajectory.total:
            fast = [p.detach() for p in trajectory.model.parameters()]
            self._slow = [slow.to(p.device) for slow, p in zip(self._slow, fast, strict=True)]
            torch._foreach_lerp_(self._slow, fast, self.share(trajectory))
            torch._foreach_copy_(fast, self._slow)
        return loss

    def share(self, trajectory: Trajectory) -> float:
        """The part of the way to the fast weights that the slow ones go after a minibatch.

        Args:
            trajectory: Model and optimizer, before the minibatch is counted.

        Returns:
            A fraction: the recipe's rate.
        """
        return self.recipe.lookahead.rate

    def state_dict(self) -> dict[str, Any]:
        """The slow weights."""
        return {"slow": self._slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the slow weights."""
        self._slow = list(state["slow"])
