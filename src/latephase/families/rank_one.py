"""Rank-one factors: every member scales the rows and the columns of a shared weight."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..errors import LatePhaseValueError
from ._factors import FactoredModule, Factors, install_all, refuse_tied
from ._family import Family, Installation, listing, refuse_parametrized, refuse_unusable

_WEIGHTED: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class RankOneFactors(Factors):
    """Row and column factors of one weight of shape (out, in, ...)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(weight.new_ones(weight.shape[0]))
        self.column = nn.Parameter(weight.new_ones(weight.shape[1]))

    def forward(self, weight: Tensor) -> Tensor:
        """`weight * (row column^T)`, elementwise over the first two dimensions."""
        kernel = (1,) * (weight.ndim - 2)
        return weight * self.row.view(-1, 1, *kernel) * self.column.view(1, -1, *kernel)

    def neutral(self) -> dict[str, Tensor]:
        """Ones."""
        return {"row": torch.ones_like(self.row), "column": torch.ones_like(self.column)}


class RankOne(Family):
    r"""Members \(W_k = W \circ (r_k s_k^\top)\) of every linear and convolutional weight.

    The factors start at one, so the model's function does not change at attachment; until the members come to life
    they train as ordinary shared weights, then every member has its own. The average is that of the factors, and at
    collapse it is folded into the plain weight. Factors join the optimizer group of their weight: with weight decay
    there they decay towards zero, which `LatePhase.parameter_groups(late_weight_decay=0.0)` avoids.

    Args:
        types: which modules; of `nn.Linear`, `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d` (the default: all of them).
        names: `fnmatch` patterns over the dotted names of the modules; None takes every module of the types.

    Source: "Neural networks with late-phase weights" (ICLR 2021), rank-1 weights; BatchEnsemble (ICLR 2020).

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
        >>> list(latephase.RankOne(torch.nn.Conv2d).targets(model))
        ['0.weight']
    """

    def __init__(self, *types: type[nn.Module], names: str | list[str] | None = None) -> None:
        for kind in types:
            if not (isinstance(kind, type) and issubclass(kind, _WEIGHTED)):
                shown = kind.__name__ if isinstance(kind, type) else repr(kind)
                raise LatePhaseValueError(f"RankOne({shown}): supported are {listing(t.__name__ for t in _WEIGHTED)}")
        self.types = types or _WEIGHTED
        self.names = [names] if isinstance(names, str) else names

    def targets(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """See `Family.targets`."""
        modules = {n: m for n, m in model.named_modules() if isinstance(m, self.types)}
        chosen = {
            n: m
            for n, m in modules.items()
            if self.names is None or any(fnmatchcase(n, pattern) for pattern in self.names)
        }
        if not chosen:
            kinds = "/".join(t.__name__ for t in self.types)
            raise LatePhaseValueError(
                f"RankOne(names={self.names}) matches nothing; the {kinds} modules are {listing(modules)}"
            )
        found = {}
        for name, module in chosen.items():
            target = f"{name}.weight" if name else "weight"
            refuse_parametrized(name, module)
            refuse_unusable(target, module.weight)  # type: ignore[arg-type]
            found[target] = module.weight
        refuse_tied(model, "RankOne", found)  # type: ignore[arg-type]
        return found  # type: ignore[return-value]

    def install(self, model: nn.Module, targets: Mapping[str, nn.Parameter]) -> Installation:
        """See `Family.install`."""
        owners = {target: target.rpartition(".")[0] for target in targets}
        return install_all(
            [
                FactoredModule(owner, model.get_submodule(owner), {"weight": RankOneFactors(targets[target].detach())})
                for target, owner in owners.items()
            ]
        )
