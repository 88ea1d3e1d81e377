"""Late-phase weights by name: any parameters at all, or every one of them."""

from fnmatch import fnmatchcase

from torch import nn

from ..errors import LatePhaseValueError
from ._family import Family, first_names, listing, refuse_unusable


class Parameters(Family):
    """Every parameter whose dotted name matches one of the patterns.

    Args:
        patterns: `fnmatch` patterns over the dotted names of `model.named_parameters()`; every pattern must match
            something. A tied parameter is found under each of its names and is one late-phase weight.

    Raises:
        LatePhaseValueError: no pattern, or one that is no string.

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> list(latephase.Parameters("*.bias").targets(model))
        ['0.bias', '1.bias']
    """

    def __init__(self, *patterns: str) -> None:
        if not patterns:
            raise LatePhaseValueError("Parameters() needs at least one name pattern, such as 'layer4.*.weight'")
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise LatePhaseValueError(
                    f"Parameters({pattern!r}): a pattern is a string, not {type(pattern).__name__}"
                )
        self.patterns = patterns

    def targets(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """See `Family.targets`."""
        every = dict(model.named_parameters(remove_duplicate=False))
        names = first_names(model)
        found = {}
        for pattern in self.patterns:
            matched = [name for name in every if fnmatchcase(name, pattern)]
            if not matched:
                raise LatePhaseValueError(f"Parameters({pattern!r}) matches nothing; the model has {listing(every)}")
            found.update({names[every[name]]: every[name] for name in matched})
        for name, parameter in found.items():
            refuse_unusable(name, parameter)
        return found


class Full(Family):
    """Every weight of the model: K whole members that share nothing.

    A baseline of the paper; it does worse than the low-dimensional families.

    Example:
        >>> import torch, latephase
        >>> list(latephase.Full().targets(torch.nn.Linear(3, 4)))
        ['weight', 'bias']
    """

    def targets(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """See `Family.targets`."""
        found = dict(model.named_parameters())
        if not found:
            raise LatePhaseValueError(f"weights 'full': {type(model).__name__} has no parameters")
        for name, parameter in found.items():
            refuse_unusable(name, parameter)
        return found
