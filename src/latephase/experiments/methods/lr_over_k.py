"""Control: plain SGD with the learning rate divided by K from T0 on."""

from __future__ import annotations

from latephase.experiments.methods.method import Method


class LearningRateOverK(Method):
    """The annealing that late-phase base weights get in passing, since they step K times less often."""

    name = "lr-over-k"
    label = "lr/K"
    summary = "plain SGD, learning rate divided by K from T0 on"

    @property
    def start(self) -> float:
        """T0."""
        return self.t0

    @property
    def rate(self) -> float:
        """1/K."""
        return 1.0 / self.recipe.late_phase.members
