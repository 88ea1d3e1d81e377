"""What a method is: a way to train, and a way to read a model off the training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from latephase.experiments.config import Recipe

if TYPE_CHECKING:
    from latephase import LatePhase
    from latephase.experiments.trajectory import Trajectory


class Method:
    """A way to train: plain training up to `start`, and from there on whatever the method says.

    A method changes what it overrides and nothing else. Since everything before `start` is plain training, the
    methods of a study share it: it is trained once and each method goes on from its copy.

    Args:
        recipe: The recipe of the run.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    summary: ClassVar[str]

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @property
    def start(self) -> float:
        """Fraction of training up to which this is plain training; 1 means all of it."""
        return 1.0

    @property
    def rate(self) -> float:
        """Factor on the learning rate from `start` on."""
        return 1.0

    @property
    def late(self) -> LatePhase | None:
        """The late phase whose members the report looks at, if there is one."""
        return None

    def attach(self, trajectory: Trajectory) -> None:
        """Build what the method needs on the model and the optimizer, before its state is set or loaded."""

    def begin(self, trajectory: Trajectory) -> None:
        """Set the method's state at `start`."""

    def step(self, trajectory: Trajectory, x: Tensor, y: Tensor) -> Tensor:
        """Train on one minibatch.

        Args:
            trajectory: Model and optimizer.
            x: Images, (N, channels, height, width).
            y: Labels, (N,).

        Returns:
            The minibatch's loss, a scalar.
        """
        trajectory.optimizer.zero_grad()
        loss = trajectory.loss(x, y)
        loss.backward()
        trajectory.optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """What the method must remember between two minibatches, beyond model and optimizer."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


class Reading:
    """A model read off a trajectory while it trains, other than its last weights; the trajectory is not changed.

    Args:
        recipe: The recipe of the run.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    summary: ClassVar[str]

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @property
    def start(self) -> float:
        """Fraction of training before which nothing is looked at."""
        return 0.0

    def after_epoch(self, trajectory: Trajectory, epoch: int) -> None:
        """Look at the trajectory.

        Args:
            trajectory: Model and optimizer.
            epoch: Number of epochs trained so far, from 1 on.
        """

    def weights(self) -> dict[str, Tensor]:
        """The state dict of the model that was read off."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What the reading must remember between two epochs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
