"""The ways of training that are compared, each as rates of Algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import latephase


@dataclass(frozen=True)
class Scheme:
    r"""Members :math:`w_k = \theta + \varphi_k` with rates for every single weight.

    A weight that the members share has late rate 0; one that each member has for itself has base rate 0.

    Attributes:
        name: Short name.
        label: Name for a reader.
        members: K.
        base_lr: :math:`\eta_\theta` of every weight, (n,).
        late_lr: :math:`\eta_\varphi` of every weight, (n,).
        scale: :math:`\gamma`, the factor on the sum of the members' base gradients.
    """

    name: str
    label: str
    members: int
    base_lr: Tensor
    late_lr: Tensor
    scale: float

    @property
    def effective_lr(self) -> Tensor:
        r"""Rate of the averaged model, :math:`\eta_\varphi + \gamma K \eta_\theta`, of every weight."""
        return self.late_lr + self.scale * self.members * self.base_lr


def late_weights(model: nn.Module) -> Tensor:
    """Which weights are late-phase by default, the normalisation layers' and the classifier's.

    Args:
        model: The model; it is left as it was.

    Returns:
        Bool, (n,), in the order of `model.parameters()`.
    """
    phase = latephase.LatePhase(model, members=1)
    late = {id(parameter) for parameter in phase.late_parameters()}
    marks = [torch.full((p.numel(),), id(p) in late) for p in model.parameters()]
    phase.collapse()
    return torch.cat(marks)


def schemes(late: Tensor, lr: float, members: int) -> list[Scheme]:
    """SGD, its two controls, and late-phase training in three forms.

    Args:
        late: Which weights the members have for themselves where not all are, (n,).
        lr: SGD's learning rate.
        members: K.

    Returns:
        The schemes, SGD first.
    """
    none = torch.zeros(len(late), dtype=torch.float64)
    every = none + lr
    own, shared = torch.where(late, every, none), torch.where(late, none, every)
    mean = 1.0 / members
    return [
        Scheme("sgd", "SGD", 1, every, none, 1.0),
        Scheme("k-batch", f"{members}-batch SGD", members, every, none, mean),
        Scheme("lr-over-k", f"SGD, lr/{members}", 1, every / members, none, 1.0),
        Scheme("additive", "late phase, all weights", members, every / 2, every / 2, mean),
        Scheme("norm-head-mean", "late phase, norm + head, mean", members, shared, own, mean),
        Scheme("norm-head-sum", "late phase, norm + head, sum", members, shared, own, 1.0),
    ]
