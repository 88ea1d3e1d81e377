"""Dropout (Srivastava et al., 2014), and MC-dropout (Gal and Ghahramani, 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from latephase.experiments.errors import ExperimentError
from latephase.experiments.methods.method import Method, Predictions, Reading
from latephase.stage import evaluating

if TYPE_CHECKING:
    from latephase.experiments.trajectory import Trajectory


class Dropout(Method):
    """Plain SGD with the model's dropout layers turned on."""

    name = "dropout"
    label = "dropout"
    summary = "plain SGD with dropout in training"

    @property
    def start(self) -> float:
        """The first minibatch."""
        return 0.0

    def attach(self, trajectory: Trajectory) -> None:
        """Set the rate of every dropout layer."""
        for layer in _layers(trajectory.model):
            layer.p = self.recipe.dropout.rate


class MCDropout(Reading):
    """The mean of the probabilities of several forward passes with dropout on, BatchNorm in eval mode."""

    name = "mc-dropout"
    label = "MC-dropout"
    summary = "dropout in training and in use: the mean probabilities of several passes"
    reads = "dropout"
    only = True
    ensemble = True

    @property
    def start(self) -> float:
        """Nothing needs to be looked at on the way."""
        return 1.0

    def model(self, trajectory: Trajectory) -> nn.Module:
        """The network itself."""
        return trajectory.model

    def members(self, trajectory: Trajectory) -> Predictions:
        """The passes; the draws begin anew with every call for one set of images, so a prediction can be repeated."""

        def predict(x: Any) -> Tensor:
            with torch.no_grad(), evaluating(trajectory.model), _dropping(trajectory.model), torch.random.fork_rng():
                torch.manual_seed(trajectory.seed)
                return torch.stack(
                    [trajectory.task.predict(trajectory.model, x) for _ in range(self.recipe.dropout.passes)]
                )

        return predict


def _layers(model: nn.Module) -> list[_DropoutNd]:
    found = [m for m in model.modules() if isinstance(m, _DropoutNd)]
    if not found:
        raise ExperimentError(f"method dropout: {type(model).__name__} has no dropout layer; take another model.name")
    return found


@contextmanager
def _dropping(model: nn.Module) -> Iterator[None]:
    """Dropout layers in training mode, inside the block."""
    layers = _layers(model)
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
