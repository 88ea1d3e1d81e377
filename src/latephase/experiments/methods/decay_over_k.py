"""Control: plain SGD with the base weights' decay divided by K from T0 on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latephase.experiments.methods.method import Method
from latephase.experiments.methods.weights import base_weight_decay, late_parameters

if TYPE_CHECKING:
    from latephase.experiments.trajectory import Trajectory


class DecayOverK(Method):
    """The smaller weight decay that late-phase base weights get in passing, since they step K times less often."""

    name = "decay-over-k"
    label = "decay/K"
    summary = "plain SGD, weight decay of the base weights divided by K from T0 on"

    @property
    def start(self) -> float:
        """T0."""
        return self.t0

    def attach(self, trajectory: Trajectory) -> None:
        """Lower the decay."""
        late = late_parameters(trajectory.model, self.recipe.late_phase.weights)
        base_weight_decay(trajectory.optimizer, late, 1.0 / self.recipe.late_phase.members)
