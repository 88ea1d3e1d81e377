"""Late-phase weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

import latephase
from latephase.experiments.methods.method import Method, Predictions
from latephase.experiments.methods.weights import own_weight_decay

if TYPE_CHECKING:
    from latephase.experiments.trajectory import Trajectory


class LatePhase(Method):
    """K members of the chosen weights from T0 on, taking turns; the result is their average.

    Attributes:
        families: Families of late-phase weights; None takes the recipe's.
        waits: Whether the members wait for a signal if the recipe says `auto`.
    """

    name = "late-phase"
    label = "late-phase"
    summary = "K members of the late-phase weights from T0 on, averaged into one model"
    families: ClassVar[tuple[str, ...] | None] = None
    waits: ClassVar[bool] = True

    _late: latephase.LatePhase | None = None
    _signal: latephase.StartSignal | None = None

    @property
    def start(self) -> float:
        """T0; the first minibatch where a signal is to decide, which has to watch plain training.

        Families that add factors then have them from the first minibatch on, as shared weights.
        """
        return 0.0 if self.recipe.late_phase.start == "auto" else self.t0

    @property
    def late(self) -> latephase.LatePhase | None:
        """The late phase, once it is attached."""
        return self._late

    def members(self, trajectory: Trajectory) -> Predictions | None:
        """The members' predictions, once there are members."""
        return self._late.predict if self._late is not None and self._late.phase == "late" else None

    def attach(self, trajectory: Trajectory) -> None:
        """Attach the late phase to model and optimizer."""
        config = self.recipe.late_phase
        self._late = latephase.LatePhase(
            trajectory.model,
            members=config.members,
            weights=self.families or tuple(config.weights),
            noise=config.noise,
            base_gradient=config.base_gradient,
            optimizer_state=config.optimizer_state,
            seed=trajectory.seed,
        )
        own_weight_decay(trajectory.optimizer, self._late.late_parameters(), config.weight_decay)
        self._late.optimizer(trajectory.optimizer)
        if config.start == "auto" and self.waits:
            self._signal = latephase.StartSignal(config.members, trajectory.total)

    def begin(self, trajectory: Trajectory) -> None:
        """Bring the members to life, unless that is for a later minibatch."""
        if self._signal is None:
            self.come_to_life(trajectory, trajectory.step)

    def step(self, trajectory: Trajectory, x: Tensor, y: Tensor) -> Tensor:
        """Train on a minibatch; as long as there are no members, ask the signal."""
        loss = super().step(trajectory, x, y)
        waiting = self._signal is not None and self.started is None
        if waiting and self._signal.update(loss, lr=trajectory.optimizer.param_groups[0]["lr"]):  # type: ignore[union-attr]
            self.come_to_life(trajectory, trajectory.step + 1)
        return loss

    def come_to_life(self, trajectory: Trajectory, minibatch: int) -> None:
        """Bring the members to life.

        Args:
            trajectory: Model and optimizer.
            minibatch: How many minibatches were trained on before.
        """
        assert self._late is not None
        self._late.start()
        self.started = minibatch

    def state_dict(self) -> dict[str, Any]:
        """The members, their optimizer state, the place in the round, and what the signal has seen."""
        assert self._late is not None
        signal = None if self._signal is None else self._signal.state_dict()
        return {"late": self._late.state_dict(), "signal": signal, "started": self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring the members back."""
        assert self._late is not None
        self._late.load_state_dict(state["late"])
        self.started = state["started"]
        if self._signal is not None:
            self._signal.load_state_dict(state["signal"])
