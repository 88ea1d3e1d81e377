"""Families of late-phase weights: which weights every member has for itself. One file each."""

from collections.abc import Iterable

from torch import nn

from ..errors import LatePhaseValueError
from ..sharding import check_sharding
from ._family import Family, Installation, listing
from .head import Head
from .hypernetwork import Hypernetwork
from .lora import LoRA
from .normalization import Normalization
from .parameters import Full, Parameters
from .rank_one import RankOne

NAMES: dict[str, type[Family]] = {
    "norm": Normalization,
    "head": Head,
    "full": Full,
    "rank-one": RankOne,
    "hypernetwork": Hypernetwork,
    "lora": LoRA,
}
"""Short names for `LatePhase(weights=[...])`."""

__all__ = [
    "NAMES",
    "Family",
    "Full",
    "Head",
    "Hypernetwork",
    "Installation",
    "LoRA",
    "Normalization",
    "Parameters",
    "RankOne",
    "install",
]


def _family(entry: str | Family) -> Family:
    if isinstance(entry, Family):
        return entry
    if isinstance(entry, str) and entry in NAMES:
        return NAMES[entry]()
    raise LatePhaseValueError(
        f"weights: {entry!r} is no family; use a name ({listing(NAMES)}) or a family object such as "
        "Parameters('layer4.*.weight')"
    )


def install(model: nn.Module, weights: str | Family | Iterable[str | Family]) -> list[Installation]:
    """Put the families into a model: all of them, or, if one is refused, none.

    Args:
        model: the user's model.
        weights: names of families, family objects, or a mix.

    Returns:
        One installation a family, in the order given.

    Raises:
        LatePhaseValueError: an unknown name, weights that match nothing, or two families on one tensor.
        LatePhaseError: factors beside weights that FSDP2 has sharded.

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        >>> [part] = latephase.families.install(model, "norm")
        >>> list(part.parameters)
        ['1.weight', '1.bias']
    """
    entries = [weights] if isinstance(weights, (str, Family)) else list(weights)
    if not entries:
        raise LatePhaseValueError("weights: [] names no late-phase weights; use for example ['norm', 'head']")
    families = [_family(entry) for entry in entries]
    targets = [family.targets(model) for family in families]
    factors = any(type(family).install is not Family.install for family in families)
    check_sharding(model, spread=False, factors=factors, in_place=False)
    taken: dict[nn.Parameter, tuple[str, str]] = {}
    for family, found in zip(families, targets, strict=True):
        for name, parameter in found.items():
            if parameter in taken:
                other, first = taken[parameter]
                raise LatePhaseValueError(
                    f"{name!r} belongs to two families, {other} and {type(family).__name__}"
                    + (f" (there as {first!r})" if first != name else "")
                    + "; drop one of them or choose with names or patterns"
                )
            taken[parameter] = (type(family).__name__, name)
    installations: list[Installation] = []
    try:
        for family, found in zip(families, targets, strict=True):
            installations.append(family.install(model, found))
    except BaseException:
        for installation in installations:
            installation.remove()
        raise
    late = {parameter for part in installations for parameter in part.parameters.values()}
    for part in installations:
        if part.freezes:
            _freeze(model, part, late)
    return installations


def _freeze(model: nn.Module, part: Installation, late: set[nn.Parameter]) -> None:
    """Let an installation freeze all weights but the late-phase ones, from its commit until it is folded."""
    commit, fold = part.commit, part.fold
    frozen: list[nn.Parameter] = []

    def freeze() -> None:
        commit()
        frozen.extend(p for p in model.parameters() if p.requires_grad and p not in late)
        for parameter in frozen:
            parameter.requires_grad_(False)
            # A gradient that is left over would be stepped with for ever.
            parameter.grad = None

    def thaw() -> None:
        for parameter in frozen:
            parameter.requires_grad_(True)
        fold()

    part.commit, part.fold = freeze, thaw
