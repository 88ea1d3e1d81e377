"""One training on several processes: each computes the gradients of its share of every minibatch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latephase.experiments.config import Recipe
from latephase.experiments.errors import ExperimentError
from latephase.experiments.methods.method import Method
from latephase.experiments.tasks import TEXT
from latephase.experiments.team import Team


class DataParallel:
    """Shares out minibatches, and averages losses and gradients.

    All processes then take the same steps. The mean over all samples of a minibatch is the mean over the shares of
    their means, so that they are the steps of one process, up to rounding; where a model normalises by the statistics
    of its batch it takes its share for it, as in all data-parallel training. Dropout draws the same in every process.

    Args:
        team: The processes; their group is started.
    """

    def __init__(self, team: Team) -> None:
        self.rank, self.world = team.rank, team.world

    def share(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """This process's part of a minibatch.

        Args:
            x: The model's input, (N, ...).
            y: The labels of its predictions, (N * n,).

        Returns:
            N / world samples and their labels.
        """
        return x.chunk(self.world)[self.rank], y.chunk(self.world)[self.rank]

    @torch.no_grad()
    def average(self, loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Average a loss and the gradients over the processes, in one sum.

        Args:
            loss: The mean loss of this process's share.
            parameters: The weights; their gradients become the averages.

        Returns:
            The mean loss of the minibatch, without a graph.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([loss.detach().reshape(1).float(), *(gradient.reshape(-1) for gradient in gradients)])
        dist.all_reduce(flat)
        flat /= self.world
        mean, *parts = flat.split([1, *(gradient.numel() for gradient in gradients)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))
        return mean.reshape(())


def check_shares(recipe: Recipe, method: type[Method], world: int) -> None:
    """Refuse what several processes cannot train together.

    Args:
        recipe: The recipe.
        method: The way to train.
        world: How many processes.

    Raises:
        ExperimentError: If a minibatch cannot be shared evenly, or something depends on all of it.
    """
    size = recipe.training.batch_size
    if size % world:
        raise ExperimentError(
            f"training.batch_size = {size}: {world} processes cannot share a minibatch evenly; use a multiple of that"
        )
    if getattr(method, "waits", False) and recipe.late_phase.start == "auto":
        raise ExperimentError(
            "late_phase.start = auto: the signal needs whole minibatches in one process; give a fraction, or train "
            "without torchrun"
        )
    if recipe.data.name == TEXT and recipe.text.order == "streams" and recipe.text.state != "zero":
        raise ExperimentError(
            f"text.state = {recipe.text.state}: with text.order = streams each process would carry the states of its "
            "own streams, and a checkpoint holds those of one; use text.order = windows or text.state = zero, or train "
            "without torchrun"
        )
