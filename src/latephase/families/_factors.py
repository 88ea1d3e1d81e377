"""Factors beside a weight, through `torch.nn.utils.parametrize`: shared by every family that adds them.

The user's Parameter stays the base weight, as the same object; the factors are Parameters of the parametrization.
The state dict of the model keeps its plain keys in their plain order: it holds the weight with the factors folded in.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from ..errors import LatePhaseValueError
from ._family import Installation, listing


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


class FactoredModule:
    """The factors of one module's weights: put in, folded into the weights, or taken out.

    Args:
        name: dotted name of the module.
        module: the module; changed by `install`.
        factors: by name of the weight, the factors it gets.
    """

    def __init__(self, name: str, module: nn.Module, factors: Mapping[str, Factors]) -> None:
        self.name, self.module, self.factors = name, module, dict(factors)
        self.order = tuple(module._parameters)

    def install(self) -> Installation:
        """Register the factors; the model's function stays the same, bit for bit."""
        installation = Installation({}, fold=self.fold, remove=self.remove)
        dot = f"{self.name}." if self.name else ""
        for tensor, factors in self.factors.items():
            weight = self.module._parameters[tensor]
            assert weight is not None
            parametrize.register_parametrization(self.module, tensor, factors, unsafe=True)
            inner = f"{dot}parametrizations.{tensor}."
            installation.plain[f"{inner}original"] = weight
            for name, factor in factors.named_parameters():
                kind = installation.plain if name in factors.base else installation.parameters
                kind[f"{inner}0.{name}"] = factor
                installation.weight_of[factor] = weight
        tensors = tuple(self.factors)
        self.handles = (
            self.module.register_state_dict_post_hook(_SaveFolded(self.order, tensors)),
            self.module.register_load_state_dict_pre_hook(_LoadPlain(tensors)),
        )
        return installation

    def fold(self) -> None:
        """Write the effective weights into the base weights, in place, and take the factors out."""
        with torch.no_grad():
            folded = {tensor: getattr(self.module, tensor).detach().clone() for tensor in self.factors}
            self.remove()
            for tensor, value in folded.items():
                getattr(self.module, tensor).copy_(value)

    def remove(self) -> None:
        """Take the factors out; the base weights keep their values, their identity and their place in the module."""
        for handle in self.handles:
            handle.remove()
        for tensor in self.factors:
            parametrize.remove_parametrizations(self.module, tensor, leave_parametrized=False)
        # Removal registers a tensor anew, at the end of its module; optimizers and state dicts go by the order.
        parameters = self.module._parameters
        for name in self.order:
            parameters[name] = parameters.pop(name)


def install_all(factored: list[FactoredModule]) -> Installation:
    """Install the factors of several modules as one installation; on an error nothing stays installed."""
    whole = Installation({})
    parts: list[Installation] = []

    def fold() -> None:
        for part in parts:
            part.fold()

    def remove() -> None:
        for part in parts:
            part.remove()

    try:
        for module in factored:
            part = module.install()
            parts.append(part)
            # What several weights share is known by its first name, and joins the optimizer group of the first.
            shared = set(whole.weight_of)
            whole.parameters.update(part.parameters)
            whole.weight_of = part.weight_of | whole.weight_of
            whole.plain.update((name, p) for name, p in part.plain.items() if p not in shared)
            whole.rules.extend(part.rules)
    except BaseException:
        remove()
        raise
    whole.fold, whole.remove = fold, remove
    return whole


def refuse_tied(model: nn.Module, family: str, targets: Mapping[str, nn.Parameter]) -> None:
    """Refuse factors on a weight with several owners: they would change it in one place and not in the others.

    Raises:
        LatePhaseValueError: a target has more than one name.
    """
    for name, parameter in targets.items():
        names = [n for n, p in model.named_parameters(remove_duplicate=False) if p is parameter]
        if len(names) > 1:
            raise LatePhaseValueError(
                f"{family}: {name!r} is tied ({listing(names)}), and factors would act in one of these places only; "
                "choose other modules with names=..."
            )
