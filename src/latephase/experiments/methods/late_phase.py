"""Late-phase weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
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
        count: Number of members; None takes the recipe's.
        waits: Whether the members wait for a signal if the recipe says `auto`.
    """

    name = "late-phase"
    label = "late-phase"
    summary = "K members of the late-phase weights from T0 on, averaged into one model"
    families: ClassVar[tuple[str, ...] | None] = None
    count: ClassVar[int | None] = None
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
        late = self._late
        if late is None or late.phase != "late":
            return None
        return lambda x: trajectory.task.predict(late.predict, x)

    @property
    def turn(self) -> int | None:
        """The member whose turn it is, once there are members."""
        return self._late.turn if self._late is not None and self.started is not None else None

    def attach(self, trajectory: Trajectory) -> None:
        """Attach the late phase to model and optimizer."""
        config = self.recipe.late_phase
        self._late = latephase.LatePhase(
            trajectory.model,
            members=self.count or config.members,
            weights=self.families or tuple(config.weights),
            noise=config.noise,
            base_gradient=config.base_gradient,
            optimizer_state=config.optimizer_state,
            seed=trajectory.seed,
        )
        own_weight_decay(trajectory.optimizer, self._late.late_parameters(), config.weight_decay)
        self._late.optimizer(trajectory.optimizer)
        if config.start == "auto" and self.waits:
            images = trajectory.task.kind == "images"
            # The balance of gradients is for data that are gone through many times; text hardly ever is.
            per_epoch = trajectory.batches.per_epoch if images else None
            self._signal = latephase.StartSignal(self.count or config.members, trajectory.total, per_epoch=per_epoch)

    def begin(self, trajectory: Trajectory) -> None:
        """Bring the members to life, unless that is for a later minibatch."""
        if self._signal is None:
            self.come_to_life(trajectory, trajectory.step)

    def step(self, trajectory: Trajectory, x: Tensor, y: Tensor) -> Tensor:
        """Train on a minibatch; as long as there are no members, ask the signal."""
        signal = self._signal if self.started is None else None
        noise = strength = None
        if signal is not None and signal.wants_gradients:
            noise, strength = _gradients(trajectory, x, y)
        loss = super().step(trajectory, x, y)
        rate = trajectory.optimizer.param_groups[0]["lr"]
        if signal is not None and signal.update(loss, rate, noise, strength):
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


def _gradients(trajectory: Trajectory, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Noise and signal of the gradients at this minibatch and the next one; model and generators are as before."""
    model = trajectory.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.random.fork_rng():
        both = [
            torch.autograd.grad(trajectory.loss(*minibatch), parameters, allow_unused=True)
            for minibatch in ((x, y), trajectory.batches.at(trajectory.step + 1))
        ]
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return latephase.gradient_statistics(*both)
