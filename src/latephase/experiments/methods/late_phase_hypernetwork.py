"""Late-phase embeddings of a hypernetwork."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from latephase.experiments.methods.late_phase import LatePhase
from latephase.experiments.schedule import steps_at

if TYPE_CHECKING:
    from latephase.experiments.trajectory import Trajectory


class LatePhaseHypernetwork(LatePhase):
    """A hypernetwork from the first minibatch on, whose embeddings have members from T0 on."""

    name = "late-phase-hypernetwork"
    label = "late-phase, hypernetwork"
    summary = "weights made of shared templates; K members of their embeddings from T0 on, averaged into one model"
    families = ("hypernetwork",)

    @property
    def start(self) -> float:
        """The first minibatch, since the weights are another network's from there on."""
        return 0.0

    def begin(self, trajectory: Trajectory) -> None:
        """Nothing unless T0 is the first minibatch: the hypernetwork is trained up to T0."""
        if self.recipe.late_phase.start == 0:
            super().begin(trajectory)

    def step(self, trajectory: Trajectory, x: Tensor, y: Tensor) -> Tensor:
        """Bring the members to life when T0 has come, then train."""
        fixed = self.recipe.late_phase.start != "auto"
        if fixed and self.started is None and trajectory.step >= steps_at(self.t0, trajectory.total):
            self.come_to_life(trajectory, trajectory.step)
        return super().step(trajectory, x, y)
