r"""Which weights share templates, and the first values of embeddings and templates.

All weights of one set are cut along their input channels into M blocks of equal shape. With the blocks as the rows of
W (M, D), the embeddings as the rows of \(\Phi\) (M, J) and the templates as those of T (J, D), the hypernetwork makes
\(\Phi T\). In float64 throughout; what is written into the model is rounded once.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Target:
    """One weight that the hypernetwork is to make.

    Args:
        name: dotted name of the weight.
        weight: the user's Parameter.
        axis: its dimension of input channels: 0 in a transposed convolution, 1 otherwise.
    """

    name: str
    weight: nn.Parameter
    axis: int

    @property
    def channels(self) -> int:
        """Input channels (of one group of a grouped convolution)."""
        return self.weight.shape[self.axis]

    @property
    def kind(self) -> tuple[object, ...]:
        """What weights must have in common to share templates."""
        other = (*self.weight.shape[: self.axis], *self.weight.shape[self.axis + 1 :])
        return self.axis, other, self.weight.dtype, self.weight.device

    def blocks(self, width: int) -> Tensor:
        """The weight cut along its input channels, (B, ...) in float64 on the CPU."""
        cut: Tensor = self.weight.detach().unflatten(self.axis, (-1, width)).movedim(self.axis, 0)
        return cut.to("cpu", torch.float64)


@dataclass
class TemplateSet:
    """Weights that share templates, cut into blocks of `width` input channels."""

    width: int
    targets: list[Target] = field(default_factory=list)

    @property
    def blocks(self) -> int:
        """M: blocks of all its weights together."""
        return sum(target.channels // self.width for target in self.targets)


def sets_of(targets: list[Target], split: int | None) -> list[TemplateSet]:
    """Sort weights into sets.

    Args:
        targets: the weights; where `split` is given, their channels are multiples of it.
        split: input channels of a block; None takes half the widest weight of each kind. Weights that are no
            multiple of that make sets among themselves, by the same rule.

    Returns:
        The sets, in an order that depends on the weights' shapes and order alone.
    """
    kinds: dict[tuple[object, ...], list[Target]] = {}
    for target in targets:
        kinds.setdefault(target.kind, []).append(target)
    sets = []
    for left in kinds.values():
        while left:
            widest = max(target.channels for target in left)
            width = split or (widest if widest % 2 else widest // 2)
            sets.append(TemplateSet(width, [target for target in left if target.channels % width == 0]))
            left = [target for target in left if target.channels % width]
    return sets


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns, dtype=torch.float64), generator=generator)


def kept(blocks: Tensor, templates: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    r"""Embeddings and templates that make given weights, or come as near to them as so few can.

    With J >= M the embeddings are random orthonormal rows and \(T = \Phi^\top W + (I - \Phi^\top \Phi) Z\), with Z
    random of the weights' own scale: \(\Phi T = W\). With J < M they are the leading left singular vectors of W,
    turned by a random rotation so that no template leads, and \(T = \Phi^+ W\): the nearest product of rank J.

    Args:
        blocks: W, (M, D) in float64.
        templates: J.
        generator: draws the orthogonal matrices.

    Returns:
        Embeddings (M, J), whose rows have a mean square norm of 1, and templates (J, D).
    """
    count, size = blocks.shape
    if templates >= count:
        embeddings = _orthogonal(count, templates, generator)
        spare = torch.randn(templates, size, dtype=torch.float64, generator=generator) * blocks.square().mean().sqrt()
        return embeddings, spare + embeddings.T @ (blocks - embeddings @ spare)
    leading = torch.linalg.eigh(blocks @ blocks.T).eigenvectors[:, -templates:]
    embeddings = leading @ _orthogonal(templates, templates, generator) * (count / templates) ** 0.5
    return embeddings, embeddings.T @ blocks * (templates / count)


def fresh(scales: Tensor, size: int, templates: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random embeddings and templates whose products have given scales.

    Args:
        scales: (M,), root mean square that each block is to have.
        size: D.
        templates: J.
        generator: draws the values.

    Returns:
        Orthogonal embeddings (M, J) with rows of norm 1 times the block's scale relative to the set's, and normal
        templates (J, D) of the set's scale.
    """
    whole = scales.square().mean().sqrt()
    if not whole > 0:
        whole = torch.ones_like(whole)
    rows = _orthogonal(len(scales), templates, generator)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12) * (scales / whole).unsqueeze(1)
    return rows, torch.randn(templates, size, dtype=torch.float64, generator=generator) * whole
