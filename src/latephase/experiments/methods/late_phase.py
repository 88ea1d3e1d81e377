"""Late-phase weights, with each family of weights that the paper replicates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

import latephase
from latephase.experiments.methods.method import Method, Predictions
from latephase.experiments.methods.weights import base_weight_decay, own_weight_decay
from latephase.experiments.schedule import steps_at

if TYPE_CHECKING:
    from latephase.experiments.trajectory import Trajectory


class LatePhase(Method):
    """K members of the chosen weights from T0 on, taking turns; the result is their average.

    Attributes:
        families: Families of late-phase weights; None takes the recipe's.
    """

    name = "late-phase"
    label = "late-phase"
    summary = "K members of the late-phase weights from T0 on, averaged into one model"
    families: ClassVar[tuple[str, ...] | None] = None

    _late: latephase.LatePhase | None = None

    @property
    def start(self) -> float:
        """T0."""
        return self.recipe.late_phase.start

    @property
    def late(self) -> latephase.LatePhase | None:
        """The late phase, from T0 on."""
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


class LatePhaseNorm(LatePhase):
    """The normalisation layers alone."""

    name = "late-phase-norm"
    label = "late-phase, norms"
    summary = "K members of the norms' scales and shifts from T0 on, averaged into one model"
    families = ("norm",)


class LatePhaseRankOne(LatePhase):
    """Rank-1 factors of every weight matrix and convolution, 1 at T0."""

    name = "late-phase-rank-one"
    label = "late-phase, rank-1"
    summary = "K members of rank-1 factors of the weights from T0 on, averaged into one model"
    families = ("rank-one",)


class LatePhaseFull(LatePhase):
    """Every weight: K separate networks from T0 on."""

    name = "late-phase-full"
    label = "late-phase, all weights"
    summary = "K members of every weight from T0 on, averaged into one model"
    families = ("full",)


class LatePhaseFromStart(LatePhase):
    """Late-phase weights that are not late: T0 = 0."""

    name = "late-phase-from-start"
    label = "late-phase, T0 = 0"
    summary = "late-phase weights from the first minibatch on"

    @property
    def start(self) -> float:
        """The first minibatch."""
        return 0.0


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
        """Nothing yet: the members come to life at T0."""

    def step(self, trajectory: Trajectory, x: Tensor, y: Tensor) -> Tensor:
        """Plain training of the hypernetwork up to T0."""
        if trajectory.step == steps_at(self.recipe.late_phase.start, trajectory.total):
            super().begin(trajectory)
        return super().step(trajectory, x, y)


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
