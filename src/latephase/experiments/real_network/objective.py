"""A training loss as a function of one flat vector of weights, for many vectors at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

#: Mean loss of the weights (n,) over inputs (B, ...) and targets (B, ...).
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

_ROWS = 16  # of the Hessian at a time: more are no faster, and take memory


class Objective:
    """A mean loss over samples with its exact derivatives.

    Args:
        loss: Mean loss over the samples it is given.
        inputs: All inputs, (N, ...), float64.
        targets: All targets, (N, ...).
    """

    def __init__(self, loss: Loss, inputs: Tensor, targets: Tensor) -> None:
        self._loss = loss
        self._inputs = inputs
        self._targets = targets
        self._gradient = grad(loss)
        self._gradients = vmap(self._gradient)

    @property
    def samples(self) -> int:
        """Number of samples N."""
        return len(self._inputs)

    def losses(self, weights: Tensor) -> Tensor:
        """Loss over all samples.

        Args:
            weights: (R, n).

        Returns:
            (R,).
        """
        return vmap(self._loss, (0, None, None))(weights, self._inputs, self._targets)

    def gradient(self, weights: Tensor) -> Tensor:
        """Gradient over all samples.

        Args:
            weights: (n,).

        Returns:
            (n,).
        """
        return self._gradient(weights, self._inputs, self._targets)

    def minibatch_gradients(self, weights: Tensor, index: Tensor) -> Tensor:
        """Gradients over one minibatch for each vector of weights.

        Args:
            weights: (R, n).
            index: int64 positions of the samples, (R, B).

        Returns:
            (R, n).
        """
        return self._gradients(weights, self._inputs[index], self._targets[index])

    def deviations(self, weights: Tensor) -> Tensor:
        """Gradients of single samples minus their mean.

        Args:
            weights: (n,).

        Returns:
            (N, n).
        """
        each = vmap(self._gradient, (None, 0, 0))(weights, self._inputs[:, None], self._targets[:, None])
        return each - each.mean(0)

    def hessian(self, weights: Tensor) -> Tensor:
        """Exact Hessian over all samples, row by row.

        Args:
            weights: (n,).

        Returns:
            (n, n), symmetric.
        """
        # The Hessian is symmetric: the gradient's pullback is its pushforward, and needs one graph for all rows.
        pull: Callable[[Tensor], tuple[Tensor]] = vjp(self.gradient, weights)[1]
        unit = torch.eye(len(weights), dtype=weights.dtype)
        rows = torch.cat([vmap(pull)(part)[0] for part in unit.split(_ROWS)])
        return (rows + rows.T) / 2

    def linear_gradients(self, centre: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The minibatch gradients with everything left out that is not linear in the weights.

        Args:
            centre: Where they are expanded, (n,).

        Returns:
            A function like `minibatch_gradients`: each minibatch keeps its own gradient and its own Hessian at the
            centre.
        """

        def linear(weights: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
            value, pull = vjp(lambda w: self._gradient(w, inputs, targets), centre)[:2]
            return value + pull(weights - centre)[0]

        many = vmap(linear)
        return lambda weights, index: many(weights, self._inputs[index], self._targets[index])


def of_model(model: nn.Module, inputs: Tensor, targets: Tensor, weight_decay: float) -> Objective:
    """Cross-entropy of a classifier in eval mode plus half the weight decay times the squared weights.

    Args:
        model: The classifier, float64; its running statistics are constants.
        inputs: (N, channels, height, width).
        targets: Class indices, (N,).
        weight_decay: On every weight.

    Returns:
        The objective of the weights in the order of `model.parameters()`.
    """
    model.eval()
    names = [name for name, _ in model.named_parameters()]
    shapes = [parameter.shape for parameter in model.parameters()]
    sizes = [parameter.numel() for parameter in model.parameters()]
    buffers = dict(model.named_buffers())

    def loss(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parts = zip(names, weights.split(sizes), shapes, strict=True)
        parameters = {name: part.view(shape) for name, part, shape in parts}
        logits = functional_call(model, (parameters, buffers), (x,))
        return F.cross_entropy(logits, y) + 0.5 * weight_decay * weights.dot(weights)

    return Objective(loss, inputs, targets)


def flat_weights(model: nn.Module) -> Tensor:
    """The weights as one vector.

    Args:
        model: The model.

    Returns:
        (n,), a copy.
    """
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
