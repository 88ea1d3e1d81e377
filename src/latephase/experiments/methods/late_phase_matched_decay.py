"""Control: late-phase weights with the base weights' decay of plain training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latephase.experiments.methods.late_phase import LatePhase
from latephase.experiments.methods.weights import base_weight_decay

if TYPE_CHECKING:
    from latephase.experiments.trajectory import Trajectory


class LatePhaseMatchedDecay(LatePhase):
    """Late-phase weights whose base weights decay as much per minibatch as in plain training.

    They step once in K minibatches, so at an unchanged weight decay they decay K times less: under BatchNorm that is a
    hidden change of the learning rate.
    """

    name = "late-phase-matched-decay"
    label = "late-phase, decay x K"
    summary = "late-phase weights, the base weights' decay multiplied by K: as much per minibatch as in plain SGD"

    def attach(self, trajectory: Trajectory) -> None:
        """Attach the late phase, then raise the decay."""
        super().attach(trajectory)
        assert self._late is not None
        late = self._late.late_parameters()
        base_weight_decay(trajectory.optimizer, late, float(self.recipe.late_phase.members))
