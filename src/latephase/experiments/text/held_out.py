"""Held-out text in order: every character but the first predicted exactly once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from latephase.experiments.errors import ExperimentError
from latephase.experiments.text.corpus import Text

#: The label of a character that is read and not scored, which PyTorch's cross-entropy leaves out as well.
UNSCORED = -100


def held_out(
    text: Text, batch_size: int, length: int, context: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Overlapping windows that predict each character but the first of a text exactly once, to its last one.

    The first `context` characters of a window are scored in the window before: each character is predicted from at
    least as many before it, save for the first ones of the text. A recurrent network begins each window without a
    state; how much that costs can be seen by a larger `context`.

    Args:
        text: The held-out text.
        batch_size: Windows in a minibatch.
        length: Characters in each.
        context: Characters to read before the first one that is scored.
        device: Where the minibatches are wanted.

    Yields:
        Tokens, int64 (B, length); and the ones that follow them, `UNSCORED` where they do not count.

    Raises:
        ExperimentError: If there is nothing to predict.
    """
    if len(text) < 2:
        raise ExperimentError(f"a held-out text of {len(text)} bytes has nothing to predict; it needs at least 2")
    if not 0 <= context < length:
        raise ExperimentError(f"a window of {length} characters cannot read {context} of them before it is scored")
    text = text.to(device)
    last = len(text) - 1
    length = min(length, last)
    stride = max(1, length - context)
    windows = 1 + -(-(last - length) // stride)
    for first in range(0, windows, batch_size):
        number = torch.arange(first, min(first + batch_size, windows), device=device)[:, None]
        # The last window ends with the text, and overlaps further with the one before.
        begin = (number * stride).clamp(max=last - length)
        scored = torch.where(number == 0, 0, (number - 1) * stride + length)
        position = begin + torch.arange(length, device=device)
        yield text.tokens(position), text.tokens(position + 1).masked_fill(position < scored, UNSCORED)
