"""The expected loss of the averaged model and of its members."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Loss(NamedTuple):
    r"""Loss :math:`\tfrac12 \sum_i h_i (w_i - w_i^*)^2` of the averaged model and of the mean member.

    It is the noise-free loss; the loss on a noisy minibatch would add the constant
    :math:`\mathrm{tr}(H\Sigma) / (2B)`.

    Attributes:
        average: Loss of the averaged model: a float, or one float64 per requested count or replica.
        members: Mean over the members of each member's own loss, in the same shape; equal to ``average`` for
            methods that have one model only.

    Example:
        >>> from latephase import nqp
        >>> nqp.SGD(lr=0.2).steady_state(nqp.Problem([1.0])).average  # lr h s / (2 B (2 - lr h))
        0.05555555555555556
    """

    average: float | NDArray[np.float64]
    members: float | NDArray[np.float64]
