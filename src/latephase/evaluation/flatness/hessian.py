"""Flatness of the loss: trace and largest eigenvalues of its Hessian."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from latephase.errors import LatePhaseError, LatePhaseValueError
from latephase.evaluation._checks import again, at_least, classified, plain
from latephase.evaluation._result import Result
from latephase.evaluation.flatness.operator import SymmetricOperator, hessian_operator
from latephase.stage import evaluating


@dataclass(frozen=True)
class Flatness(Result):
    """The Hessian of the mean loss in numbers.

    Attributes:
        trace: Estimate of the sum of all eigenvalues.
        trace_standard_error: Its standard error over probe vectors; nothing is said of other samples or seeds.
        probes: How many probe vectors.
        eigenvalues: The largest eigenvalues (by value, not magnitude), in falling order.
        residuals: For each, |H v - lambda v| with |v| = 1: some eigenvalue of H is within this distance.
        parameters: Size of the Hessian.
        samples: Samples that the loss is the mean over.
        loss: The loss at this point.
        batch_norm: How BatchNorm was handled: "eval mode" (running statistics, which do not depend on the weights
            here), or "none" where the model has no such layer.
    """

    trace: float
    trace_standard_error: float
    probes: int
    eigenvalues: tuple[float, ...]
    residuals: tuple[float, ...]
    parameters: int
    samples: int
    loss: float
    batch_norm: str


def flatness(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    loss: nn.Module | None = None,
    parameters: str = "*",
    probes: int = 32,
    eigenvalues: int = 5,
    tolerance: float = 1e-3,
    max_restarts: int = 100,
    seed: int = 0,
) -> Flatness:
    """Trace and largest eigenvalues of the Hessian of the training loss.

    The whole model is in eval mode: dropout is off, and BatchNorm uses its running statistics as constants. That is
    the loss of the deployed network; in training mode, where a batch's statistics depend on the weights, the Hessian
    is another one. The loss is the data's alone, without weight decay.

    Mind that the Hessian of a network with normalisation layers changes when weights are rescaled though the function
    does not: compare models of one architecture, trained alike, and see `latephase.evaluation.landscape.perturb` for a
    measure without that flaw.

    Args:
        model: A plain classifier. Its modes, gradients and values are the old ones afterwards.
        batches: Pairs of inputs and class indices of which there may be many passes, normally (part of) the training
            data without augmentation. Memory does not grow with their number.
        loss: Loss module with `reduction="mean"`; cross-entropy by default.
        parameters: Pattern (fnmatch, over dotted names) of the parameters that vary; the others are constants.
        probes: Random vectors for the trace, at least 2; the standard error falls with their square root.
        eigenvalues: How many of the largest eigenvalues; 0 leaves them out.
        tolerance: Relative accuracy of the eigenvalues.
        max_restarts: Bound on restarts of Lanczos; not reaching the tolerance within it is an error.
        seed: Seed of the probes and of Lanczos' first vector.

    Returns:
        Trace with its standard error, eigenvalues with their residuals.

    Raises:
        LatePhaseError: curvlinops is not installed, Lanczos did not converge, a loss that is not finite, or a model
            whose members are a late phase's.
        LatePhaseValueError: No samples, batches that can be iterated over only once, a pattern that matches nothing,
            more eigenvalues than parameters, labels that do not fit.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(2, 2, bias=False)
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> measured = flatness(model, data, eigenvalues=1)
        >>> measured.parameters, measured.batch_norm
        (4, 'none')
    """
    plain("flatness", model)
    again("flatness: batches", batches)
    at_least("flatness: probes", probes, 2)
    at_least("flatness: eigenvalues", eigenvalues, 0)
    chosen = [p for n, p in model.named_parameters() if p.requires_grad and fnmatchcase(n, parameters)]
    if not chosen:
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        raise LatePhaseValueError(
            f"flatness: parameters {parameters!r} matches none of the {len(names)} trainable parameters of "
            f"{type(model).__name__} ({', '.join(names[:5])}, ...)"
        )
    size = sum(p.numel() for p in chosen)
    if eigenvalues >= size:
        raise LatePhaseValueError(f"flatness: {eigenvalues} eigenvalues of {size} parameters; ask for fewer")
    criterion = nn.CrossEntropyLoss() if loss is None else loss
    if getattr(criterion, "reduction", None) != "mean":
        raise LatePhaseValueError(f"flatness: loss {criterion!r}; use a loss module with reduction='mean'")
    with evaluating(model):
        value, samples = _loss(model, criterion, batches)
        operator = hessian_operator(model, criterion, chosen, batches, samples)
        trace, deviation = hutchinson(operator, probes, seed, chosen[0])
        top, residuals = _largest(operator, eigenvalues, tolerance, max_restarts, seed, chosen[0])
    normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    batch_norm = "eval mode" if normed else "none"
    return Flatness(trace, deviation, probes, top, residuals, size, samples, value, batch_norm)


def _loss(model: nn.Module, criterion: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, int]:
    total, samples = 0.0, 0
    with torch.no_grad():
        for x, y in batches:
            logits = model(x)
            classified("flatness", logits, y)
            total += float(criterion(logits, y)) * len(y)
            samples += len(y)
    if not samples:
        raise LatePhaseValueError("flatness: no samples; the batches are empty")
    if not np.isfinite(total):
        raise LatePhaseError(f"flatness: the loss is {total / samples}; the Hessian there means nothing")
    return total / samples, samples


def hutchinson(operator: SymmetricOperator, probes: int, seed: int, like: Tensor) -> tuple[float, float]:
    r"""Trace of a symmetric operator (Girard, 1989; Hutchinson, 1990), with its standard error.

    .. math:: \mathrm{tr}\, H = \mathrm{E}[v^\top H v] \quad \text{for independent } v_i = \pm 1.

    One vector at a time is multiplied, and the products are averaged in float64.

    Args:
        operator: Multiplies vectors (n,).
        probes: How many vectors, at least 2.
        seed: Their seed; they are drawn on the CPU.
        like: Gives the vectors' dtype and device.

    Returns:
        The mean over vectors, and its standard error.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(probes, dtype=torch.float64)
    for i in range(probes):
        v = (torch.randint(0, 2, (operator.shape[0],), generator=generator) * 2 - 1).to(like.device, like.dtype)
        values[i] = float((v.double() * (operator @ v).double()).sum())
    return float(values.mean()), float(values.std() / probes**0.5)


def _largest(
    operator: SymmetricOperator, count: int, tolerance: float, restarts: int, seed: int, like: Tensor
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The largest eigenvalues by Lanczos' method (ARPACK, through SciPy), and the residuals of their vectors."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    if not count:
        return (), ()

    def product(v: np.ndarray) -> np.ndarray:
        vector = torch.from_numpy(np.ascontiguousarray(v).reshape(-1)).to(like.device, like.dtype)
        return (operator @ vector).double().cpu().numpy()

    start = np.random.default_rng(seed).standard_normal(operator.shape[0])
    wrapped = LinearOperator(operator.shape, matvec=product, dtype=np.float64)
    try:
        values, vectors = eigsh(wrapped, k=count, which="LA", tol=tolerance, v0=start, maxiter=restarts)
    except ArpackNoConvergence as error:
        raise LatePhaseError(
            f"flatness: {len(error.eigenvalues)} of {count} eigenvalues reached the tolerance {tolerance} in "
            f"{restarts} restarts; ask for fewer, or raise tolerance or max_restarts"
        ) from error
    order = np.argsort(-values)
    residuals = [float(np.linalg.norm(product(vectors[:, i]) - values[i] * vectors[:, i])) for i in order]
    return tuple(float(values[i]) for i in order), tuple(residuals)
