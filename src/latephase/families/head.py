"""The last linear layer, replicated beside the norms in the paper's classification experiments."""

from collections.abc import Iterable

from torch import nn

from ..errors import LatePhaseValueError
from ._family import Family, first_names, listing, refuse_parametrized, refuse_unusable


def _repeated(model: nn.Module, name: str, linears: Iterable[str]) -> list[str]:
    """Linears at the same place in sibling blocks: `blocks.1.mlp.fc2` beside `blocks.0.mlp.fc2`.

    A number at the very end does not make a layer repeated (`classifier.6` is simply the last of a Sequential), nor
    does one that counts plain Sequentials.
    """
    *path, leaf = name.split(".")
    numbered = [i for i, part in enumerate(path) if part.isdigit()]
    if not numbered or isinstance(model.get_submodule(".".join(path[: numbered[-1] + 1])), nn.Sequential):
        return []

    def alike(other: str) -> bool:
        *others, last = other.split(".")
        return (
            last == leaf
            and len(others) == len(path)
            and all(a == b or (a.isdigit() and b.isdigit()) for a, b in zip(path, others, strict=True))
        )

    return [other for other in linears if other != name and alike(other)]


def _parallel(name: str, linears: dict[str, nn.Linear]) -> list[str]:
    """Heads side by side (`head` and `head_dist`): same parent, same input, and neither feeds the other."""
    last = linears[name]
    parent = name.rpartition(".")[0]
    names = list(linears)
    at = names.index(name)
    beside = []
    for other in reversed(names[:at]):
        module = linears[other]
        if other.rpartition(".")[0] != parent or module.in_features != last.in_features:
            break
        if module.out_features == last.in_features:
            break
        beside.append(other)
    return beside


class Head(Family):
    """Weight and bias of the classification layer.

    Args:
        name: dotted name of the layer; None takes the last `nn.Linear` that the model registers.

    Source: the authors' CIFAR configuration replicates the final linear layer together with BatchNorm.

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> list(latephase.Head().targets(model))
        ['2.weight', '2.bias']
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def targets(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """See `Family.targets`; ambiguous and tied heads are refused with the list of candidates."""
        linears = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.Linear)}
        names = first_names(model)
        if self.name is None:
            chosen, layer = self._last(model, linears)
        else:
            modules = dict(model.named_modules(remove_duplicate=False))
            if self.name not in modules:
                raise LatePhaseValueError(
                    f"Head(name={self.name!r}): no such module; the linear layers are {listing(linears)}"
                )
            chosen, layer = self.name, modules[self.name]
        refuse_parametrized(chosen, layer)
        found = {names[p]: p for p in layer.parameters(recurse=False)}
        if not found:
            raise LatePhaseValueError(
                f"Head(name={chosen!r}): {type(layer).__name__} has no weights of its own; "
                f"the linear layers are {listing(linears)}"
            )
        for name, parameter in found.items():
            refuse_unusable(name, parameter)
        return found

    def _last(self, model: nn.Module, linears: dict[str, nn.Linear]) -> tuple[str, nn.Linear]:
        if not linears:
            raise LatePhaseValueError(
                f"weights 'head': {type(model).__name__} has no nn.Linear; name the layer with Head(name=...)"
            )
        name = list(linears)[-1]
        others = _repeated(model, name, linears) or _parallel(name, linears)
        if others:
            raise LatePhaseValueError(
                f"weights 'head': the last linear layer {name!r} is one of several alike, so it may not be the head; "
                f"choose with Head(name=...) among {listing([*others, name])}"
            )
        head = linears[name]
        owners = [
            f"{n}.{own}" if n else own
            for n, module in model.named_modules()
            for own, p in module.named_parameters(recurse=False)
            if any(p is q for q in head.parameters(recurse=False)) and module is not head
        ]
        if owners:
            raise LatePhaseValueError(
                f"weights 'head': {name!r} is tied to {listing(owners)}, which replicating it would replicate too; if "
                f"that is meant, use Parameters('{name}.*'), or choose with Head(name=...) among {listing(linears)}"
            )
        return name, head
