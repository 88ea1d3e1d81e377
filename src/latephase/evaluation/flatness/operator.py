"""The one place that knows curvlinops: Hessian-vector products of the mean loss over a data set."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from latephase.errors import LatePhaseError


class SymmetricOperator(Protocol):
    """A symmetric matrix that is known by its products with vectors.

    Attributes:
        shape: (n, n).
    """

    shape: tuple[int, int]

    def __matmul__(self, vector: Tensor, /) -> Tensor:
        """Product with a vector (n,)."""


def hessian_operator(
    model: nn.Module,
    loss: nn.Module,
    parameters: list[nn.Parameter],
    batches: Iterable[tuple[Tensor, Tensor]],
    samples: int,
) -> SymmetricOperator:
    """The Hessian of the mean loss over all samples, in the order of the given parameters.

    curvlinops adds up minibatches and converts between vectors and lists of tensors; the products of a minibatch are
    taken by double backward instead of its `jvp` of `jacrev`, which torch 2.15 computes wrongly, and without a word,
    for `layer_norm`: the Hessian is not even symmetric (pytorch/pytorch#196700 is a relative).

    Args:
        model: In eval mode, so that the loss is a sum over samples.
        loss: A loss module with `reduction="mean"`.
        parameters: The parameters; all of one dtype and device.
        batches: Pairs of inputs and labels; one pass is made for each product.
        samples: How many samples these hold together.

    Returns:
        The operator.

    Raises:
        LatePhaseError: curvlinops is not installed.
    """
    try:
        with warnings.catch_warnings():
            # A dependency of curvlinops uses torch.jit.script, of which torch warns.
            warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
            from curvlinops import HessianLinearOperator
    except ModuleNotFoundError as error:
        raise LatePhaseError(
            "the Hessian needs curvlinops, which is not installed; pip install 'latephase[flatness]'"
        ) from error

    class DoubleBackward(HessianLinearOperator):  # type: ignore[misc]
        """The Hessian, with the products of one minibatch by double backward."""

        def _matmat_batch(self, X: Tensor, y: Tensor, M: list[Tensor]) -> list[Tensor]:  # noqa: N803 - their names
            return products(self._loss_func(self._model_func(X), y), self._params, M)

    # Its own check for determinism prints, and costs four passes; eval mode makes the loss deterministic.
    operator: SymmetricOperator = DoubleBackward(
        model, loss, parameters, batches, check_deterministic=False, num_data=samples
    )
    return operator


def products(loss: Tensor, parameters: list[nn.Parameter], columns: list[Tensor]) -> list[Tensor]:
    """Products of a loss's Hessian with several vectors.

    Args:
        loss: A scalar with its graph.
        parameters: What it is differentiated by.
        columns: For each parameter, (*shape, V), the parts of V vectors.

    Returns:
        The parts of the products, of the same shapes.
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    # A gradient that depends on no parameter (of one that the loss is linear in) adds nothing.
    varying = [i for i, gradient in enumerate(gradients) if gradient.requires_grad]
    results = [torch.zeros_like(column) for column in columns]
    for v in range(columns[0].shape[-1] if varying else 0):
        seconds = torch.autograd.grad(
            [gradients[i] for i in varying],
            parameters,
            [columns[i][..., v] for i in varying],
            retain_graph=True,
            materialize_grads=True,
        )
        for result, second in zip(results, seconds, strict=True):
            result[..., v] = second
    return results
