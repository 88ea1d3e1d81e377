"""Late-phase weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import latephase
from latephase.experiments.methods.method import Method
from latephase.experiments.methods.weights import own_weight_decay

if TYPE_CHECKING:
    from latephase.experiments.trajectory import Trajectory


class LatePhase(Method):
    """K members of the chosen weights from T0 on, taking turns; the result is their average."""

    name = "late-phase"
    label = "late-phase"
    summary = "K members of the late-phase weights from T0 on, averaged into one model"

    _late: latephase.LatePhase | None = None

    @property
    def start(self) -> float:
        """T0."""
        return self.recipe.late_phase.start

    @property
    def late(self) -> latephase.LatePhase | None:
        """The late phase, from T0 on."""
        return self._late

    def attach(self, trajectory: Trajectory) -> None:
        """Attach the late phase to model and optimizer."""
        config = self.recipe.late_phase
        self._late = latephase.LatePhase(
            trajectory.model,
            members=config.members,
            weights=tuple(config.weights),
            noise=config.noise,
            base_gradient=config.base_gradient,
            optimizer_state=config.optimizer_state,
            seed=trajectory.seed,
        )
        own_weight_decay(trajectory.optimizer, self._late.late_parameters(), config.weight_decay)
        self._late.optimizer(trajectory.optimizer)

    def begin(self, trajectory: Trajectory) -> None:
        """Bring the members to life."""
        assert self._late is not None
        self._late.start()

    def state_dict(self) -> dict[str, Any]:
        """The members, their optimizer state and the place in the round."""
        return {} if self._late is None else self._late.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring the members back."""
        assert self._late is not None
        self._late.load_state_dict(state)


class LatePhaseFromStart(LatePhase):
    """Late-phase weights that are not late: T0 = 0."""

    name = "late-phase-from-start"
    label = "late-phase, T0 = 0"
    summary = "late-phase weights from the first minibatch on"

    @property
    def start(self) -> float:
        """The first minibatch."""
        return 0.0
