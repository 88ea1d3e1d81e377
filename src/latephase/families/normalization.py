"""Scales and shifts of normalisation layers: the paper's default, and its best."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import LatePhaseValueError
from ._family import Family, first_names, listing, refuse_parametrized, refuse_unusable

_KNOWN = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _affine(module: nn.Module) -> dict[str, nn.Parameter]:
    own = {name: p for name, p in module.named_parameters(recurse=False) if name in ("weight", "bias")}
    if isinstance(module, _KNOWN):
        return own
    # Norms of other libraries are known by their name; a weight with two or more dimensions is a projection that
    # happens to live in a class called, say, NormalizedLinear.
    if "norm" not in type(module).__name__.lower():
        return {}
    return {name: p for name, p in module.named_parameters(recurse=False) if p.ndim <= 1}


class Normalization(Family):
    """The affine weights of every normalisation layer.

    Covers BatchNorm1d/2d/3d, SyncBatchNorm, LayerNorm, GroupNorm, InstanceNorm and RMSNorm, and any module whose class
    name says that it is a norm and that has affine weights of its own (LlamaRMSNorm, T5LayerNorm, ...). Running
    statistics need no family: they are each member's own whenever there are late-phase weights at all.

    Source: "Neural networks with late-phase weights" (ICLR 2021), late-phase BatchNorm.

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        >>> list(latephase.Normalization().targets(model))
        ['1.weight', '1.bias']
    """

    def targets(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """See `Family.targets`."""
        names = first_names(model)
        norms = {name: (module, own) for name, module in model.named_modules() if (own := _affine(module))}
        found = {names[p]: p for _, own in norms.values() for p in own.values()}
        if not found:
            kinds = sorted({type(module).__name__ for module in model.modules()})
            raise LatePhaseValueError(
                f"weights 'norm': {type(model).__name__} has no normalisation layer with a scale or a shift; "
                f"it has modules of the types {listing(kinds)}"
            )
        for name, (module, _) in norms.items():
            refuse_parametrized(name, module)
        for name, parameter in found.items():
            refuse_unusable(name, parameter)
        return found
