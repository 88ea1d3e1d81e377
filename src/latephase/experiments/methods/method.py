"""What a method is: a way to train, and a way to read a model off the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from latephase.experiments.config import Recipe
from latephase.experiments.errors import ExperimentError

if TYPE_CHECKING:
    from latephase import LatePhase
    from latephase.experiments.trajectory import Trajectory

#: Maps a model's input to the logits of each of P models, (P, N, classes), in eval mode.
Predictions = Callable[[Any], Tensor]


class Method:
    """A way to train: plain training up to `start`, and from there on whatever the method says.

    A method changes what it overrides and nothing else. Since everything before `start` is plain training, the
    methods of a study share it: it is trained once and each method goes on from its copy.

    Args:
        recipe: The recipe of the run.

    Attributes:
        name: What it is asked for by.
        label: What tables and figures call it.
        summary: What it does, in one line; K stands for the recipe's number of members.
        ensemble: Whether it predicts with the mean of the probabilities of its members, and so is no single model.
        started: The minibatch at which its members came to life; None before, and for methods without members.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    summary: ClassVar[str]
    ensemble: ClassVar[bool] = False
    started: int | None = None

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @property
    def cost(self) -> int:
        """How many times the minibatches of plain training this trains on."""
        return 1

    @property
    def start(self) -> float:
        """Fraction of training up to which this is plain training; 1 means all of it."""
        return 1.0

    @property
    def t0(self) -> float:
        """The recipe's T0, for the methods that begin there.

        Raises:
            ExperimentError: If the recipe leaves T0 to a signal that this method does not have.
        """
        start = self.recipe.late_phase.start
        if isinstance(start, str):
            raise ExperimentError(
                f"late_phase.start = {start}: method {self.name} needs a fraction; only late-phase methods can wait "
                "for a signal"
            )
        return start

    @property
    def rate(self) -> float:
        """Factor on the learning rate from `start` on."""
        return 1.0

    @property
    def turn(self) -> int | None:
        """The place in the round of K minibatches; None where there are no rounds."""
        return None

    @property
    def first_round(self) -> int | None:
        """The minibatch at which the first round began; None before."""
        return self.started

    @property
    def late(self) -> LatePhase | None:
        """The late phase whose members the report looks at, if there is one."""
        return None

    def members(self, trajectory: Trajectory) -> Predictions | None:
        """The predictions that the method's own are made of.

        Args:
            trajectory: Model and optimizer, at any minibatch.

        Returns:
            The logits of each member; None if there are no members, or not yet.
        """
        return None

    def weights(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """What is kept of the method when training is over.

        Args:
            trajectory: Model and optimizer, at their end.

        Returns:
            A state dict: the plain model's, unless the method is an ensemble.
        """
        return trajectory.model.state_dict()

    def attach(self, trajectory: Trajectory) -> None:
        """Build what the method needs on the model and the optimizer, before its state is set or loaded."""

    def begin(self, trajectory: Trajectory) -> None:
        """Set the method's state at `start`."""

    def step(self, trajectory: Trajectory, x: Tensor, y: Tensor) -> Tensor:
        """Train on one minibatch.

        Args:
            trajectory: Model and optimizer.
            x: The model's input, such as images, (N, channels, height, width).
            y: The labels of its predictions, (N,).

        Returns:
            The minibatch's loss, a scalar.
        """
        trajectory.optimizer.zero_grad()
        loss = trajectory.backward(trajectory.loss(x, y))
        trajectory.clip()
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

    Attributes:
        name: What it is asked for by: alone for the training it reads, or as `training+reading`.
        label: What tables and figures call it.
        summary: What it does, in one line.
        reads: Name of the training that the reading's bare name stands for.
        only: Whether that is the only training it can read.
        ensemble: Whether it predicts with the mean of the probabilities of several predictions.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    summary: ClassVar[str]
    reads: ClassVar[str] = "base"
    only: ClassVar[bool] = False
    ensemble: ClassVar[bool] = False

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @property
    def start(self) -> float:
        """Fraction of training before which nothing is looked at."""
        return 0.0

    @classmethod
    def summary_for(cls, recipe: Recipe) -> str:
        """What it does under a recipe, in one line.

        Args:
            recipe: The recipe.

        Returns:
            `summary`, unless a setting makes it something else.
        """
        return cls.summary

    def after_step(self, trajectory: Trajectory) -> None:
        """Look at the trajectory after a minibatch.

        Args:
            trajectory: Model and optimizer.
        """

    def after_epoch(self, trajectory: Trajectory, epoch: int) -> None:
        """Look at the trajectory after an epoch.

        Args:
            trajectory: Model and optimizer.
            epoch: Number of epochs trained so far, from 1 on.
        """

    def model(self, trajectory: Trajectory) -> nn.Module:
        """The model that was read off.

        Args:
            trajectory: Model and optimizer, at their end.

        Returns:
            A classifier.
        """
        raise NotImplementedError

    def members(self, trajectory: Trajectory) -> Predictions | None:
        """The predictions that the reading's own are made of; see `Method.members`."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What the reading must remember between two minibatches."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
