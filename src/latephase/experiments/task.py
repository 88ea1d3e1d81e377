"""What is predicted from what: the part of an experiment that images and text do differently."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from latephase.evaluation import Metrics
from latephase.experiments.config import Recipe


class Batches(Protocol):
    """The endless sequence of training minibatches: number i is a function of the seed and i alone."""

    per_epoch: int

    def at(self, number: int) -> tuple[Tensor, Tensor]:
        """The model's input, and the labels, (N,), of all its predictions."""

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The minibatches of one pass."""

    def with_seed(self, seed: int) -> Self:
        """Those of another seed, of the same data."""


class Task(ABC):
    """A data set with its model, its minibatches and its scores.

    A model may return more than logits (a recurrent one its state), and a minibatch may hold many predictions (text
    one for each character). `forward` and `predict` turn what the model returns into one row of logits for each
    prediction, so that everything after them is plain classification.

    Args:
        recipe: Data, model and training.
        seed: Seed of weights and minibatches.
        device: Where model and minibatches live.

    Attributes:
        metrics: Names of the scores, the one that matters first.
        kind: What one sample is called.
    """

    metrics: ClassVar[tuple[str, ...]]
    kind: ClassVar[str]

    def __init__(self, recipe: Recipe, seed: int, device: torch.device) -> None:
        self.recipe, self.seed, self.device = recipe, seed, device

    @property
    @abstractmethod
    def batches(self) -> Batches:
        """The training minibatches by their number."""

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Number of `classes`, and of `train`, `validation` and `test` samples."""

    @property
    @abstractmethod
    def per_epoch(self) -> int:
        """Minibatches of one pass over the training data.

        Raises:
            ExperimentError: If there is less than one minibatch.
        """

    @abstractmethod
    def fresh_model(self, seed: int) -> nn.Module:
        """The plain model with initial weights.

        Args:
            seed: Seed of the weights.

        Returns:
            A new model on the task's device, in training mode.
        """

    @abstractmethod
    def validation(self) -> Iterator[tuple[Any, Tensor]] | None:
        """Data to choose by.

        Returns:
            Pairs of what `predict` takes and the labels, (N,), of its predictions; None if there is none.
        """

    @abstractmethod
    def test(self) -> Iterator[tuple[Any, Tensor]]:
        """Data that the results are measured on.

        Returns:
            Pairs as of `validation`.
        """

    def minibatch(self, step: int, turn: int | None, since: int | None) -> tuple[Tensor, Tensor]:
        """The minibatch to train on.

        Args:
            step: Its number.
            turn: The place in the round of the one that trains on it; None where there are no rounds.
            since: The minibatch at which the first round began; None before.

        Returns:
            The model's input, and the labels of its predictions, (N,).
        """
        return self.batches.at(step)

    def slot(self, turn: int | None) -> int:
        """Who a state that is carried from one minibatch to the next belongs to.

        Args:
            turn: The member that trains; None without members.

        Returns:
            A number: 0 where all share one.
        """
        return 0

    def forward(self, model: nn.Module, x: Tensor, slot: int) -> Tensor:
        """A forward pass of training.

        Args:
            model: The model.
            x: Its input.
            slot: Whose state it goes on from, if it has any.

        Returns:
            Logits, (N, classes).
        """
        return self.predict(model, x)

    def predict(self, call: Callable[[Any], Any], x: Any) -> Tensor:
        """The predictions for a minibatch of held-out data.

        Args:
            call: The model, or what returns the stacked outputs of its members.
            x: What `validation` or `test` yielded.

        Returns:
            Logits, (..., N, classes).
        """
        logits: Tensor = call(x)
        return logits

    def scores(self, metrics: Metrics) -> dict[str, float]:
        """The scores that the results are made of.

        Args:
            metrics: What was added up over held-out data.

        Returns:
            One number for each of `metrics`.
        """
        return metrics.compute()

    def state_dict(self) -> dict[str, Any]:
        """What must be remembered between two minibatches."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        assert not state, "a task without a state was given one"
