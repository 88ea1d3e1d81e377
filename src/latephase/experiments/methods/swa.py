"""Stochastic weight averaging (Izmailov et al., 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latephase.experiments.config import Recipe
from latephase.experiments.methods.averaged import AveragedWeights
from latephase.experiments.schedule import steps_at

if TYPE_CHECKING:
    from latephase.experiments.trajectory import Trajectory


class SWA(AveragedWeights):
    """The mean of the weights at the end of every epoch, or of so many minibatches, after a fraction of training.

    The sum is kept in float64 and rounded once: torch.optim.swa_utils averages step by step in the weights' own
    precision, and copies the module.
    """

    name = "swa"
    label = "SWA"
    summary = "mean of the weights at the ends of the last epochs, statistics recomputed"

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._sum: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._models = 0

    @classmethod
    def summary_for(cls, recipe: Recipe) -> str:
        """Says which weights are averaged: those of epochs, or of every so many minibatches."""
        every, begin = recipe.swa.every, recipe.swa.start
        if every is None:
            return cls.summary
        when = f"every {'minibatch' if every == 1 else f'{every} minibatches'} from {begin:.0%} of training on"
        return cls.summary.replace("at the ends of the last epochs", when)

    @property
    def start(self) -> float:
        """Where the average begins."""
        return self.recipe.swa.start

    def after_epoch(self, trajectory: Trajectory, epoch: int) -> None:
        """Add the weights once the fraction is passed."""
        epochs = self.recipe.training.epochs
        # A start of 0.8 means epochs 161 to 200 of 200; the last one always counts, however short the training.
        if self.recipe.swa.every is None and epoch > min(round(self.recipe.swa.start * epochs), epochs - 1):
            self._add(trajectory)

    def after_step(self, trajectory: Trajectory) -> None:
        """Add the weights once the fraction is passed, where minibatches are counted."""
        every = self.recipe.swa.every
        if every is None:
            return
        done = trajectory.step - steps_at(self.recipe.swa.start, trajectory.total)
        if done > 0 and (done % every == 0 or trajectory.step == trajectory.total):
            self._add(trajectory)

    def _add(self, trajectory: Trajectory) -> None:
        self._last = {name: value.detach().clone() for name, value in trajectory.model.state_dict().items()}
        for name, value in self._last.items():
            if value.is_floating_point():
                wide = value.to(torch.float64)
                # Saved states come back on the CPU.
                self._sum[name] = self._sum[name].to(wide.device) + wide if self._models else wide
        self._models += 1

    def weights(self) -> dict[str, Tensor]:
        """The mean; what is not a floating-point tensor is that of the last epoch."""
        return {
            name: (self._sum[name] / self._models).to(value.dtype) if name in self._sum else value
            for name, value in self._last.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The sums and how many models are in them."""
        return {"models": self._models, "sum": self._sum, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the sums."""
        self._models, self._sum, self._last = state["models"], dict(state["sum"]), dict(state["last"])
