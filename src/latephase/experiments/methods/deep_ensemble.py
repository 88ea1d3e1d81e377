"""Deep ensembles (Lakshminarayanan, Pritzel and Blundell, NeurIPS 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latephase.experiments.config import Recipe
from latephase.experiments.methods.method import Method, Predictions
from latephase.stage import evaluating

if TYPE_CHECKING:
    from latephase.experiments.trajectory import Trajectory


class DeepEnsemble(Method):
    """N networks from other initial weights on other minibatches, whose probabilities are averaged: N times the cost.

    The first one is plain training with the run's own seed. All are trained on the same images.
    """

    name = "deep-ensemble"
    label = "deep ensemble"
    summary = "several networks trained apart, their probabilities averaged"
    ensemble = True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._models: list[nn.Module] = []
        self._optimizers: list[torch.optim.Optimizer] = []

    @property
    def cost(self) -> int:
        """N."""
        return self.recipe.deep_ensemble.networks

    @property
    def start(self) -> float:
        """The first minibatch."""
        return 0.0

    def attach(self, trajectory: Trajectory) -> None:
        """Make the other networks, each with a seed of its own."""
        seeds = [trajectory.seed + 1000 * i for i in range(1, self.cost)]
        self._batches = [trajectory.batches.with_seed(seed) for seed in seeds]
        self._models = [trajectory.model, *(trajectory.fresh_model(seed) for seed in seeds)]
        self._optimizers = [trajectory.new_optimizer(model) for model in self._models[1:]]

    def step(self, trajectory: Trajectory, x: Tensor, y: Tensor) -> Tensor:
        """One minibatch for each network."""
        losses = [super().step(trajectory, x, y)]
        rate = trajectory.optimizer.param_groups[0]["lr"]
        others = zip(self._models[1:], self._optimizers, self._batches, strict=True)
        for i, (model, optimizer, batches) in enumerate(others, start=1):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            minibatch = batches.at(trajectory.step)
            if trajectory.parallel is not None:
                minibatch = trajectory.parallel.share(*minibatch)
            loss = trajectory.backward(trajectory.loss(*minibatch, model, slot=i), model)
            trajectory.clip(model)
            optimizer.step()
            losses.append(loss)
        return torch.stack([loss.detach() for loss in losses]).mean()

    def members(self, trajectory: Trajectory) -> Predictions:
        """The networks' predictions."""

        def predict(x: Any) -> Tensor:
            outputs = []
            for model in self._models:
                with torch.no_grad(), evaluating(model):
                    outputs.append(trajectory.task.predict(model, x))
            return torch.stack(outputs)

        return predict

    def weights(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """The weights of all networks; the keys begin with the network's number."""
        return {f"{i}.{name}": value for i, m in enumerate(self._models) for name, value in m.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """The other networks and their optimizers."""
        return {
            "models": [model.state_dict() for model in self._models[1:]],
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the other networks."""
        for model, saved in zip(self._models[1:], state["models"], strict=True):
            model.load_state_dict(saved)
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
