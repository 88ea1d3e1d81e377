"""Ranks that work together in a test: all four processes, one of two pairs, or one alone."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

import latephase
from cases import Case, tensors
from latephase.reference import Reference

TURNS, SIZE = 7, 8  # minibatches after the start; samples of one, over all ranks


@dataclass(frozen=True)
class Place:
    """A rank among `world` that work together."""

    rank: int
    world: int
    mesh: DeviceMesh
    group: dist.ProcessGroup
    folder: Path

    def share(self, batch):
        """This rank's part of a minibatch."""
        return share(batch, self.rank, self.world)


def share(batch, rank: int, world: int):
    return tuple(tensor.chunk(world)[rank] for tensor in batch)


def whole(found: dict) -> dict[str, torch.Tensor]:
    return {n: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for n, t in found.items()}


def held(late: latephase.LatePhase) -> dict[str, torch.Tensor]:
    """Every member and the average, put together from all ranks."""
    found = {f"average.{name}": tensor for name, tensor in whole(late.averaged_state_dict()).items()}
    if late.phase == "late":
        for k in range(late.members):
            with late.member(k):
                found |= {f"{k}.{name}": tensor for name, tensor in whole(tensors(late.model)).items()}
    return found


def loss_of_shares(case: Case, batch, world: int):
    """The mean loss of the ranks' shares, as rank 0 sees it: the others' running statistics are their own."""

    def loss(model: nn.Module) -> torch.Tensor:
        total = case.loss(share(batch, 0, world))(model)
        for rank in range(1, world):
            x, y = share(batch, rank, world)
            theirs = {name: buffer.clone() for name, buffer in model.named_buffers()}
            total = total + nn.functional.cross_entropy(torch.func.functional_call(model, theirs, x), y)
        return total / world

    return loss


def judged(case: Case, world: int, turns: int = TURNS, clip=None, change: tuple[int, int] = (TURNS, 0)) -> Reference:
    """One process with the minibatches of `world` ranks, of which each has its share.

    `change`: after how many minibatches from the start on there are how many ranks instead.
    """
    _, _, judge = case.reference()
    for number, batch in enumerate(case.batches(case.start + turns, size=SIZE)):
        if number == case.start:
            judge.start()
        present = world if number < case.start + change[0] else change[1]
        judge.step(loss_of_shares(case, batch, present), clip=clip)
    return judge
