"""Control: late-phase training with its members taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from latephase.experiments.methods.accumulating import Accumulating
from latephase.experiments.methods.weights import late_parameters, own_weight_decay

if TYPE_CHECKING:
    from latephase.experiments.trajectory import Trajectory


class Twin(Accumulating):
    """Late-phase minus diversity: one copy of the late-phase weights, which steps on the mean of K gradients.

    The base weights step on gamma times the sum, as they do under late-phase weights.
    """

    name = "twin"
    label = "twin"
    summary = "late-phase without members: base weights step on the sum, head and norms on the mean of K gradients"

    def attach(self, trajectory: Trajectory) -> None:
        """Find the weights that would be late-phase weights."""
        super().attach(trajectory)
        self._late = late_parameters(trajectory.model, self.recipe.late_phase.weights)
        own_weight_decay(trajectory.optimizer, self._late, self.recipe.late_phase.weight_decay)
        chosen = set(self._late)
        self._base: list[nn.Parameter] = [p for p in trajectory.model.parameters() if p not in chosen]

    def combine(self) -> None:
        """Base weights: gamma times the sum. Late-phase weights: the mean."""
        K = self.recipe.late_phase.members
        gamma = self.recipe.late_phase.base_gradient
        factor = {"sum": 1.0, "mean": 1.0 / K}[gamma] if isinstance(gamma, str) else gamma
        for parameters, scale in ((self._base, factor), (self._late, 1.0 / K)):
            for p in parameters:
                if p.grad is not None and scale != 1.0:
                    p.grad.mul_(scale)
