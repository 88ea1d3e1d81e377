"""Factors beside a weight, through `torch.nn.utils.parametrize`: shared by every family that adds them.

The user's Parameter stays the base weight, as the same object; the factors are Parameters of the parametrization.
The state dict of the model keeps its plain keys in their plain order: it holds the weight with the factors folded in.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from ._family import Installation
from ._recurrent import hand_over, take_back


class Factors(nn.Module, ABC):
    """The factors of one weight: a parametrization whose Parameters are late-phase weights."""

    base: tuple[str, ...] = ()
    """Names of the Parameters that are not late-phase: base weights, which several weights may share."""

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """Compose the effective weight from the base weight and the factors."""

    @abstractmethod
    def neutral(self) -> dict[str, Tensor]:
        """Values of the factors, by name, beside which any weight can be loaded as it is; see `beside_neutral`."""

    def beside_neutral(self, weight: Tensor) -> Tensor:
        """The base weight that with neutral factors makes the given effective weight: the same, if not overridden."""
        return weight


def factors_of(module: nn.Module, tensor: str) -> Factors:
    """The factors beside `module.<tensor>`."""
    factors = module.get_submodule(f"parametrizations.{tensor}.0")
    assert isinstance(factors, Factors)
    return factors


@dataclass
class _SaveFolded:
    """State-dict hook: one plain weight in its plain place instead of base weight and factors.

    It and its counterpart hold names only, so that copies of the module keep working.

    Args:
        order: the module's plain parameter names, in order.
        tensors: which of them carry factors.
    """

    order: tuple[str, ...]
    tensors: tuple[str, ...]

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        """Rewrite the module's part of the state dict."""
        mine = {key: state.pop(key) for key in [key for key in state if key.startswith(prefix)]}
        for tensor in self.tensors:
            inner = f"{prefix}parametrizations.{tensor}."
            weight = mine.pop(f"{inner}original")
            factors = {key.removeprefix(f"{inner}0."): mine.pop(key) for key in list(mine) if key.startswith(inner)}
            with torch.no_grad():
                mine[prefix + tensor] = functional_call(factors_of(module, tensor), factors, (weight,))
        for name in self.order:
            if prefix + name in mine:
                state[prefix + name] = mine.pop(prefix + name)
        state.update(mine)


@dataclass
class _LoadPlain:
    """Load hook: a plain weight becomes the base weight, beside neutral factors."""

    tensors: tuple[str, ...]

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Rewrite the module's part of the state dict."""
        for tensor in self.tensors:
            if prefix + tensor in state:
                inner = f"{prefix}parametrizations.{tensor}."
                factors = factors_of(module, tensor)
                with torch.no_grad():
                    state[f"{inner}original"] = factors.beside_neutral(state.pop(prefix + tensor))
                for name, value in factors.neutral().items():
                    state[f"{inner}0.{name}"] = value


class _FactoredModule:
    """One module of which some weights carry factors: its order of parameters and its hooks.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.order = tuple(module._parameters)
        self.tensors: list[str] = []
        self.handles: list[RemovableHandle] = []

    def put(self, tensor: str, factors: Factors) -> None:
        """Register factors beside one weight."""
        parametrize.register_parametrization(self.module, tensor, factors, unsafe=True)
        self.tensors.append(tensor)

    def close(self) -> None:
        """Once all factors are in: make the module look and work as before."""
        tensors = tuple(self.tensors)
        self.handles = [
            self.module.register_state_dict_post_hook(_SaveFolded(self.order, tensors)),
            self.module.register_load_state_dict_pre_hook(_LoadPlain(tensors)),
        ]
        if isinstance(self.module, nn.RNNBase):
            hand_over(self.module)

    def take(self, tensor: str) -> None:
        """Take the factors beside one weight out."""
        parametrize.remove_parametrizations(self.module, tensor, leave_parametrized=False)
        self.tensors.remove(tensor)

    def clear(self) -> None:
        """Once no factors are left: the module is the one it was."""
        for handle in self.handles:
            handle.remove()
        for tensor in tuple(self.tensors):
            self.take(tensor)
        # Removal registers a tensor anew, at the end of its module; optimizers and state dicts go by the order.
        parameters = self.module._parameters
        for name in self.order:
            parameters[name] = parameters.pop(name)
        if isinstance(self.module, nn.RNNBase):
            take_back(self.module)


@dataclass
class _Site:
    """A weight, its factors, and the modules that own it (several, where it is tied)."""

    weight: nn.Parameter
    factors: Factors
    places: list[tuple[str, _FactoredModule, str]] = field(default_factory=list)

    def fold(self) -> None:
        """Take the factors out; the weight becomes what they made of it."""
        _, owner, tensor = self.places[0]
        effective = getattr(owner.module, tensor).detach()
        for _, owner, tensor in self.places:
            owner.take(tensor)
        self.weight.copy_(effective)


def install_factors(
    model: nn.Module, targets: Mapping[str, nn.Parameter], factors: Mapping[str, Factors]
) -> Installation:
    """Put factors beside weights; a tied weight gets them in all its places, and stays tied.

    Args:
        model: the model; its function stays the same as long as the factors are neutral.
        targets: the weights by dotted name.
        factors: the factors by the same names.

    Returns:
        The installation; on an error nothing stays in the model.
    """
    sites = {weight: _Site(weight, factors[name]) for name, weight in targets.items()}
    owners: list[_FactoredModule] = []
    for name, module in model.named_modules():
        owned = {tensor: sites[p] for tensor, p in module._parameters.items() if p in sites}
        if owned:
            owners.append(_FactoredModule(module))
            for tensor, site in owned.items():
                site.places.append((f"{name}.{tensor}" if name else tensor, owners[-1], tensor))

    def fold() -> None:
        with torch.no_grad():
            for site in sites.values():
                site.fold()
        remove()

    def remove() -> None:
        for owner in owners:
            owner.clear()

    try:
        for site in sites.values():
            for _, owner, tensor in site.places:
                owner.put(tensor, site.factors)
        for owner in owners:
            owner.close()
    except BaseException:
        remove()
        raise
    installation = Installation({}, fold=fold, remove=remove)
    for site in sites.values():
        name, _, tensor = site.places[0]
        inner = f"{name.removesuffix(tensor)}parametrizations.{tensor}."
        installation.plain[f"{inner}original"] = site.weight
        for own, factor in site.factors.named_parameters():
            # What several weights share is known by its first name, and joins the optimizer group of the first.
            if factor not in installation.weight_of:
                kind = installation.plain if own in site.factors.base else installation.parameters
                kind[f"{inner}0.{own}"] = factor
                installation.weight_of[factor] = site.weight
    return installation
