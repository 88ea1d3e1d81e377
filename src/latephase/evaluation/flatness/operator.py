"""The one place that knows curvlinops: Hessian-vector products of the mean loss over a data set."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

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


@contextmanager
def quiet() -> Iterator[None]:
    """Context without the deprecation warnings that torch gives itself.

    torch.func.jvp, and a dependency of curvlinops at import, use `torch.jit.script`, of which torch 2.13 warns.

    Yields:
        Nothing.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
        yield


def hessian_operator(
    model: nn.Module,
    loss: nn.Module,
    parameters: list[nn.Parameter],
    batches: Iterable[tuple[Tensor, Tensor]],
    samples: int,
) -> SymmetricOperator:
    """The Hessian of the mean loss over all samples, in the order of the given parameters.

    Args:
        model: In eval mode, so that the loss is a sum over samples.
        loss: A loss module with `reduction="mean"` or "sum".
        parameters: The parameters; all of one dtype and device.
        batches: Pairs of inputs and labels; one pass is made for each product.
        samples: How many samples these hold together.

    Returns:
        The operator.

    Raises:
        LatePhaseError: curvlinops is not installed.
    """
    try:
        from curvlinops import HessianLinearOperator
    except ModuleNotFoundError as error:
        raise LatePhaseError(
            "the Hessian needs curvlinops, which is not installed; pip install 'latephase[flatness]'"
        ) from error
    # Its own check for determinism prints and costs four passes; eval mode makes the loss deterministic.
    operator: SymmetricOperator = HessianLinearOperator(
        model, loss, parameters, batches, check_deterministic=False, num_data=samples
    )
    return operator
