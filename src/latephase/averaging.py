r"""The average of the members: means in float64, rounded once, and the exact fold of normalisation statistics.

The mean over the members of an eval-mode BatchNorm's outputs is itself one affine map. With the members' slopes
\(s_k = \gamma_k / \sqrt{v_k + \epsilon}\) and the means \(\mu\), \(v\) of their statistics it is the BatchNorm with

.. math:: \gamma = \bar s \sqrt{v + \epsilon}, \qquad \beta = \overline{\beta_k - s_k \mu_k} + \bar s\, \mu .

Where the affine weights are absent or shared, the same average is written into the statistics instead. Both are
computed through the ratios \(r_k = \sqrt{(v + \epsilon) / (v_k + \epsilon)}\), which are exactly one for equal members:
K equal members average to exactly themselves, in float64 too.

Source: the authors' evaluation averages the outputs of the K normalisation layers; the plain mean of
\(\gamma, \beta, \mu, v\) is another, worse, approximation of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which averages of this dtype are accumulated."""
    return torch.complex128 if dtype.is_complex else torch.float64


def exact_mean(stack: Tensor) -> Tensor:
    """Mean over the members, in float64, unrounded.

    Args:
        stack: (K, ...) of any dtype.

    Returns:
        (...) in float64; for equal members exactly their value (infinite ones too), and the same for any order of the
        members. It is finite where all members are.
    """
    precise = wide(stack.dtype)
    if stack.dtype != torch.float64:
        # A sum of a few float32 numbers is exact in float64.
        return stack.mean(0, dtype=precise)
    # In float64 itself the sum rounds. Sorting makes it independent of the members' order, and the distance to the
    # smallest is exactly zero for equal members.
    ordered = stack.sort(0).values
    mean = ordered[0] + (ordered - ordered[0]).mean(0)
    # The distance overflows near the largest number, and has no value between infinities.
    return torch.where(mean.isfinite(), mean, (ordered / len(stack)).sum(0))


def culprits(stack: Tensor, mean: Tensor) -> list[int]:
    """The members that make an average infinite or NaN.

    Args:
        stack: (K, ...).
        mean: their average (...).

    Returns:
        Indices; none where the average is finite, and none of an infinity that all members have in the same place.
    """
    if bool(mean.isfinite().all()):
        return []
    spoilt = ~mean.isfinite() & ~(stack == stack[0]).all(0)
    return (~stack.isfinite() & spoilt).flatten(1).any(1).nonzero().flatten().tolist()


def rounded(mean: Tensor, like: Tensor) -> Tensor:
    """A float64 average in the dtype of the tensor it stands for; counts are rounded to the nearest integer."""
    if like.dtype.is_floating_point or like.dtype.is_complex:
        return mean.to(like.dtype)
    return mean.round().to(like.dtype)


@dataclass(frozen=True)
class NormFold:
    """The exact fold of one normalisation layer with running statistics.

    Args:
        eps: the layer's epsilon.
        weight: name of the scale, None where the layer has none.
        bias: name of the shift, None where the layer has none.
        mean: name of the running mean.
        var: name of the running variance.
        late_scale: whether every member has a scale of its own.
        late_shift: whether every member has a shift of its own.
    """

    eps: float
    weight: str | None
    bias: str | None
    mean: str
    var: str
    late_scale: bool
    late_shift: bool

    def reads(self) -> tuple[str, ...]:
        """Names of the tensors that the fold needs, and may write."""
        scale = (self.weight,) if self.late_scale else ()
        shift = (self.bias,) if self.late_scale or self.late_shift else ()
        return (self.mean, self.var, *(name for name in (*scale, *shift) if name is not None))

    def __call__(self, stacks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Average this layer.

        Args:
            stacks: (K, C) by name; a shift that all members share comes as (1, C).

        Returns:
            (C,) in float64 for each of the names.
        """
        mean_k, var_k = stacks[self.mean].double(), stacks[self.var].double()
        mean, var = exact_mean(mean_k), exact_mean(var_k)
        ratio = ((var + self.eps) / (var_k + self.eps)).sqrt()
        if not self.late_scale or self.weight is None:
            return self._into_statistics(stacks, mean_k, mean, var, ratio)
        scale = stacks[self.weight].double() * ratio
        folded = {self.weight: exact_mean(scale), self.mean: mean, self.var: var}
        lag = scale * (mean - mean_k)
        if self.bias is not None:
            folded[self.bias] = exact_mean(stacks[self.bias].double() + lag / (var + self.eps).sqrt())
        else:
            # Without a shift the running mean takes up the difference; it cannot where the mean scale is zero.
            whole = folded[self.weight]
            folded[self.mean] = mean - torch.where(whole == 0, 0.0, exact_mean(lag) / whole)
        return folded

    def _into_statistics(
        self, stacks: Mapping[str, Tensor], mean_k: Tensor, mean: Tensor, var: Tensor, ratio: Tensor
    ) -> dict[str, Tensor]:
        inner = exact_mean(ratio)
        # Equal members keep their variance to the last bit. For others a difference to the mean variance, which a
        # large one among them decides, would leave no digit of a small result.
        pooled = torch.where(inner == 1, var, (var + self.eps) / inner.square() - self.eps)
        folded = {
            self.mean: mean + exact_mean(ratio * (mean_k - mean)) / inner,
            self.var: pooled,
        }
        if self.late_shift and self.bias is not None:
            folded[self.bias] = exact_mean(stacks[self.bias])
        return folded


def fold_together(folds: Sequence[NormFold], stacks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold many layers, all of one kind at once: a deep network has a hundred small ones.

    Args:
        folds: one a layer.
        stacks: (K, C) by name; a shift that all members share comes as (1, C).

    Returns:
        (C,) in float64 for every name that a layer reads.
    """
    kinds: dict[tuple[NormFold, tuple[object, ...]], list[NormFold]] = {}
    for fold in folds:
        parts = [stacks[name] for name in fold.reads()]
        plain = replace(fold, weight=fold.weight and "weight", bias=fold.bias and "bias", mean="mean", var="var")
        kinds.setdefault((plain, tuple((part.dtype, part.device) for part in parts)), []).append(fold)
    folded: dict[str, Tensor] = {}
    for (plain, _), layers in kinds.items():
        columns = zip(*(layer.reads() for layer in layers), strict=True)
        together = dict(zip(plain.reads(), columns, strict=True))
        means = plain({role: torch.cat([stacks[name] for name in names], 1) for role, names in together.items()})
        for role, names in together.items():
            folded.update(zip(names, means[role].split([stacks[name].shape[1] for name in names]), strict=True))
    return folded
