"""Loss and error under random changes of the weights of growing size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latephase.errors import LatePhaseValueError
from latephase.evaluation._checks import at_least
from latephase.evaluation._result import Result
from latephase.evaluation.landscape.evaluator import Evaluate, statistics_used
from latephase.evaluation.landscape.states import State, check_states, weight_names

NORMALISATIONS = ("filter", "tensor")


@dataclass(frozen=True)
class Perturbation(Result):
    """Loss and error under random weight perturbation.

    Attributes:
        sizes: Relative sizes of the perturbation, the first of them 0.
        loss: The mean loss over draws, one for each size.
        loss_standard_error: Its standard error over draws.
        error: The mean error over draws.
        error_standard_error: Its standard error over draws.
        draws: How many directions were drawn; each is used at every size.
        normalisation: "filter" or "tensor", see `perturb`.
        seed: Seed of the directions.
        statistics: How BatchNorm's running statistics were handled at each point: "recomputed", "stored" (those of
            the unperturbed weights), "none" where there are none; "not said" by an `evaluate` of your own.
    """

    sizes: tuple[float, ...]
    loss: tuple[float, ...]
    loss_standard_error: tuple[float, ...]
    error: tuple[float, ...]
    error_standard_error: tuple[float, ...]
    draws: int
    normalisation: str
    seed: int
    statistics: str


def direction(state: State, normalisation: str, generator: torch.Generator) -> dict[str, Tensor]:
    r"""A random Gaussian direction, scaled to the weights.

    - "filter" (Li, Xu, Taylor, Studer and Goldstein, NeurIPS 2018): each filter (a slice of the first dimension) of a
      tensor with two or more dimensions has \(\|d_i\| = \|w_i\|\); biases and normalisation weights stay as they are,
      as in that work;
    - "tensor": each tensor, biases and normalisation weights included, has \(\|d\| = \|w\|\).

    Both make the size of a perturbation independent of a scaling of weights that BatchNorm undoes. Running statistics
    have no part in it.

    Args:
        state: A plain state dict.
        normalisation: "filter" or "tensor".
        generator: Draws on the CPU, so that a seed means the same on every device.

    Returns:
        The direction by name, float64, of the weights that change.

    Raises:
        LatePhaseValueError: An unknown normalisation.

    Example:
        >>> import torch
        >>> state = torch.nn.Linear(3, 2).state_dict()
        >>> list(direction(state, "filter", torch.Generator().manual_seed(0)))
        ['weight']
    """
    if normalisation not in NORMALISATIONS:
        raise LatePhaseValueError(
            f"perturbation: normalisation {normalisation!r}; use one of {', '.join(map(repr, NORMALISATIONS))}"
        )
    drawn: dict[str, Tensor] = {}
    for name in weight_names(state):
        weight = state[name].double()
        # Drawn for every tensor, so that both normalisations see the same directions.
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
        if normalisation == "tensor":
            drawn[name] = noise * (weight.norm() / noise.norm().clamp(min=1e-300))
        elif weight.ndim >= 2:
            axes = tuple(range(1, weight.ndim))
            size = torch.linalg.vector_norm(noise, dim=axes, keepdim=True).clamp(min=1e-300)
            drawn[name] = noise * (torch.linalg.vector_norm(weight, dim=axes, keepdim=True) / size)
    return drawn


def perturb(
    state: State,
    evaluate: Evaluate,
    sizes: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    draws: int = 10,
    normalisation: str = "filter",
    seed: int = 0,
) -> Perturbation:
    """Loss and error at w + size * d, for random directions d of the weights' own size.

    The same seed gives the same directions for every model of one architecture, so two models can be compared draw by
    draw. With a `StateEvaluator` that computes BatchNorm's statistics anew, the perturbation's mere shift of
    activations is undone; with stored statistics it is part of the damage. Say which.

    Args:
        state: A plain state dict.
        evaluate: Tells loss and error at given weights, normally a `StateEvaluator`.
        sizes: Relative sizes; 0 is always put first.
        draws: Directions; at least 2, for a standard error.
        normalisation: "filter" or "tensor", see `direction`.
        seed: Seed of the directions.

    Returns:
        Means and standard errors for each size.

    Raises:
        LatePhaseValueError: No sizes, a size that is not positive, fewer than two draws, an unknown normalisation, or
            weights that are not finite.

    Example:
        >>> from latephase.evaluation.landscape import LossAndError
        >>> bowl = perturb({"w": torch.ones(3, 4)}, lambda s: LossAndError(float(s["w"].square().sum()), 0.0), (0.1,))
        >>> bowl.loss[0], bowl.loss[1] > 11.0
        (12.0, True)
    """
    check_states("perturb", [state], least=1)
    at_least("perturb: draws", draws, 2)
    at_least("perturb: seed", seed, 0)
    if not sizes or not all(0 < size < float("inf") for size in sizes):
        raise LatePhaseValueError(f"perturb: sizes {tuple(sizes)}; use positive numbers, for example 0.01 to 0.5")
    start = evaluate(state)
    loss = torch.empty(draws, len(sizes), dtype=torch.float64)
    error = torch.empty_like(loss)
    generator = torch.Generator().manual_seed(seed)
    for draw in range(draws):
        step = direction(state, normalisation, generator)
        for i, size in enumerate(sizes):
            score = evaluate(_moved(state, step, size))
            loss[draw, i], error[draw, i] = score.loss, score.error
    return Perturbation(
        (0.0, *map(float, sizes)),
        (start.loss, *loss.mean(dim=0).tolist()),
        (0.0, *(loss.std(dim=0) / draws**0.5).tolist()),
        (start.error, *error.mean(dim=0).tolist()),
        (0.0, *(error.std(dim=0) / draws**0.5).tolist()),
        draws,
        normalisation,
        seed,
        statistics_used(evaluate),
    )


def _moved(state: State, step: dict[str, Tensor], size: float) -> OrderedDict[str, Tensor]:
    return OrderedDict(
        (name, (tensor.double() + size * step[name]).to(tensor.dtype) if name in step else tensor)
        for name, tensor in state.items()
    )
