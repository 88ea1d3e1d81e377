"""What a family of late-phase weights is: the protocol that every file in this folder follows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from ..errors import LatePhaseValueError

AverageRule = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Takes the stacks (K, ...) of some late-phase weights by name, returns their averages by name."""


def _nothing() -> None:
    pass


@dataclass
class Installation:
    """What a family put into a model.

    Args:
        parameters: the late-phase weights by dotted name; each member has its own values of them.
        weight_of: for a factor that the family added, the plain weight whose optimizer group it joins.
        plain: for families that add factors, the plain weights by the name they have in the model as it is now; a
            checkpoint of the phase holds them, because the model's own state dict holds them folded.
        shared: weights that all members share and that yet differ in the averaged model, by the name they have now.
        rules: averages other than the mean, each with the names it covers.
        freezes: whether all weights of the model that are no member's own stay as they are until the collapse.
        fold: bakes the factors that are in the model into the plain weights and takes the factors out.
        remove: takes the factors out and leaves the plain weights as they are (the way back from a failed attachment).
        commit: writes values that the plain weights get at attachment; called once nothing can be refused any more.
    """

    parameters: dict[str, nn.Parameter]
    weight_of: dict[nn.Parameter, nn.Parameter] = field(default_factory=dict)
    plain: dict[str, nn.Parameter] = field(default_factory=dict)
    shared: dict[str, nn.Parameter] = field(default_factory=dict)
    rules: list[tuple[tuple[str, ...], AverageRule]] = field(default_factory=list)
    freezes: bool = False
    fold: Callable[[], None] = _nothing
    remove: Callable[[], None] = _nothing
    commit: Callable[[], None] = _nothing


class Family(ABC):
    """One way to choose which weights every member has for itself.

    A family works in two steps, so that a refusal leaves the model untouched: `targets` finds the tensors and changes
    nothing, `install` puts in what the family needs. Families that replicate weights which the model already has
    need only the first.
    """

    @abstractmethod
    def targets(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Find the parameters that this family works on.

        Args:
            model: the user's model; not changed.

        Returns:
            Parameters by dotted name; a tied parameter under its first name.

        Raises:
            LatePhaseValueError: nothing matches (the message lists what the model has), or the choice is ambiguous.
        """

    def install(self, model: nn.Module, targets: Mapping[str, nn.Parameter]) -> Installation:
        """Make the late-phase weights.

        Args:
            model: the user's model.
            targets: what `targets` returned for it.

        Returns:
            The late-phase weights; for a plain family the targets themselves.
        """
        return Installation(parameters=dict(targets))


def first_names(model: nn.Module) -> dict[nn.Parameter, str]:
    """The name under which each parameter of a model is known: of tied names the first."""
    return {parameter: name for name, parameter in model.named_parameters()}


def listing(names: Iterable[str], limit: int = 12) -> str:
    """Names for an error message, cut where they get long."""
    names = list(names)
    shown = ", ".join(names[:limit]) or "none"
    return shown if len(names) <= limit else f"{shown}, ... ({len(names) - limit} more)"


def refuse_parametrized(name: str, module: nn.Module) -> None:
    """Refuse a module whose weights are computed from others.

    Raises:
        LatePhaseValueError: the module carries a parametrization that is not ours.
    """
    if is_parametrized(module):
        tensor = next(iter(module.parametrizations))  # type: ignore[arg-type]
        raise LatePhaseValueError(
            f"{(name + '.' + tensor).lstrip('.')!r} carries a parametrization already; remove it first "
            "(torch.nn.utils.parametrize.remove_parametrizations) or choose other weights"
        )


def refuse_unusable(name: str, parameter: nn.Parameter) -> None:
    """Refuse a tensor that no family can replicate.

    Raises:
        LatePhaseValueError: the parameter belongs to a parametrization that is not ours, is not initialised yet, or
            does not hold floating-point numbers.
    """
    if "parametrizations." in name:
        raise LatePhaseValueError(
            f"{name!r} belongs to a parametrization that is already on the model; remove it first "
            "(torch.nn.utils.parametrize.remove_parametrizations) or choose other weights"
        )
    if isinstance(parameter, UninitializedParameter):
        raise LatePhaseValueError(f"{name!r} is not initialised yet; run one forward pass of the lazy module first")
    # Eight-bit floats are stores, too: no arithmetic is defined on them.
    trained = parameter.is_complex() or (parameter.is_floating_point() and parameter.itemsize > 1)
    if parameter.is_quantized or not trained:
        raise LatePhaseValueError(
            f"{name!r} is quantised: it has dtype {parameter.dtype}, and late-phase weights are trained, so they must "
            "be floating-point of 16 bits or more; attach before the model is quantised, or choose other weights"
        )
