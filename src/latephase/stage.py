"""What is in the model right now: the member of the turn, the average, or what a context pins."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .errors import LatePhaseError
from .members import AVERAGE, Members


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and each back in its own mode afterwards; no `train` method is called."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training


def apply(model: nn.Module, batch: Any) -> Any:
    """Outputs in eval mode, without gradients, on a tensor, a tuple that begins with the input, or a dict."""
    with evaluating(model), torch.no_grad():
        if isinstance(batch, dict):
            return model(**batch)
        return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


class Stage:
    """Decides which values the model shows.

    In training mode it is the member of the turn, in eval mode the average; a context comes before both.

    Args:
        model: the user's model.
        members: its members.
        turn: tells the member whose turn it is.
    """

    def __init__(self, model: nn.Module, members: Members, turn: Callable[[], int]) -> None:
        self.model, self.members, self._turn = model, members, turn
        self.pins: list[int] = []

    def wanted(self) -> int:
        """What belongs into the model: a member's index, or AVERAGE."""
        if self.pins:
            return self.pins[-1]
        return self._turn() if self.model.training else AVERAGE

    def settle(self) -> None:
        """Bring it in, if something else is there."""
        self.members.show(self.wanted())

    @contextmanager
    def pinned(self, content: int) -> Iterator[nn.Module]:
        """Show a member or the average, in whatever mode the model is."""
        self.pins.append(content)
        try:
            self.settle()
            yield self.model
        finally:
            self.pins.pop()
            self.settle()

    def predict(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Outputs of every member in eval mode, stacked (K, ...)."""
        outputs = []
        self.pins.append(0)
        try:
            with evaluating(self.model), torch.no_grad():
                for k in range(self.members.count):
                    self.pins[-1] = k
                    self.settle()
                    outputs.append(self.model(*args, **kwargs))
        finally:
            self.pins.pop()
            self.settle()
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(outputs[0])):
            raise LatePhaseError(f"predict: the model returned {type(outputs[0]).__name__}, which holds no tensors")
        return tree_map(lambda *leaves: torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *outputs)


def compare(before: Any, after: Any) -> None:
    """Assert that two outputs agree to rounding.

    Raises:
        LatePhaseError: they differ; the message says by how much.
    """
    for a, b in zip(tree_leaves(before), tree_leaves(after), strict=True):
        if isinstance(a, Tensor) and a.is_floating_point():
            tolerance = 64 * torch.finfo(a.dtype).eps
            difference = (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
            scale = max(1.0, a.double().abs().max().item()) if a.numel() else 1.0
            if not difference <= tolerance * scale:
                raise LatePhaseError(
                    f"collapse(check=...): outputs before and after differ by {difference:.3g}, more than rounding "
                    f"({tolerance * scale:.3g}); the model holds the average all the same"
                )
