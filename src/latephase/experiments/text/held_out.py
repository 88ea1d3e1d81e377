"""Held-out text in order: every character but the first predicted exactly once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from latephase.experiments.errors import ExperimentError
from latephase.experiments.text.corpus import Text

#: The label of a character that is read and not scored, which PyTorch's cross-entropy leaves out as well.
UNSCORED = -100

# Characters after which what a recurrent network read before no longer matters.
_WARM_UP = 512


def held_out(
    text: Text,
    batch_size: int,
    length: int,
    device: torch.device,
    *,
    carried: bool = True,
    warm_up: int | None = None,
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Minibatches that predict each character but the first of a text exactly once, to its last one.

    For a model that carries its state the text is read in `batch_size` streams side by side. Each begins `warm_up`
    characters before the first that it is scored on, so that the number of streams has next to no influence on the
    score; with one stream the text is read from its beginning to its end.

    For a model that does not, these are windows of `length` characters, of which the first `warm_up` are scored in the
    window before: each character is predicted from at least as many, save for the first of the text.

    Args:
        text: The held-out text.
        batch_size: Streams or windows in a minibatch.
        length: Characters in each.
        device: Where the minibatches are wanted.
        carried: Whether the model carries its state from one minibatch to the next.
        warm_up: Characters to read before the first one that is scored; None takes 512 for streams, half a window for
            windows.

    Yields:
        Tokens, int64 (B, length) or, at the end, fewer; the ones that follow them, `UNSCORED` where they do not count;
        and whether the hidden state must begin at zero.

    Raises:
        ExperimentError: If there is nothing to predict.
    """
    if len(text) < 2:
        raise ExperimentError(f"a held-out text of {len(text)} bytes has nothing to predict; it needs at least 2")
    if carried:
        return _streams(text.to(device), batch_size, length, _WARM_UP if warm_up is None else warm_up)
    warm_up = length // 2 if warm_up is None else warm_up
    if not 0 <= warm_up < length:
        raise ExperimentError(f"a window of {length} characters cannot warm up on {warm_up} of them")
    return _windows(text.to(device), batch_size, length, warm_up)


def _streams(text: Text, batch_size: int, length: int, warm_up: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    device = text.raw.device
    last = len(text) - 1
    batch_size = min(batch_size, last)
    # Stream i predicts the characters from bounds[i] + 1 to bounds[i + 1].
    bounds = torch.tensor([i * last // batch_size for i in range(batch_size + 1)], device=device)
    scored, end = bounds[:-1, None], bounds[1:, None]
    begin = (scored - warm_up).clamp(min=0)
    longest = int((end - begin).max())
    for done in range(0, longest, length):
        position = begin + torch.arange(done, min(done + length, longest), device=device)
        counts = (position >= scored) & (position < end)
        yield *_pair(text, position.clamp(max=last - 1), counts), done == 0


def _windows(text: Text, batch_size: int, length: int, warm_up: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    device = text.raw.device
    last = len(text) - 1
    length = min(length, last)
    stride = max(1, length - warm_up)
    windows = 1 + -(-(last - length) // stride)
    for first in range(0, windows, batch_size):
        number = torch.arange(first, min(first + batch_size, windows), device=device)[:, None]
        # The last window ends with the text, and overlaps further with the one before.
        begin = (number * stride).clamp(max=last - length)
        scored = torch.where(number == 0, 0, (number - 1) * stride + length)
        position = begin + torch.arange(length, device=device)
        yield *_pair(text, position, position >= scored), True


def _pair(text: Text, position: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    return text.tokens(position), text.tokens(position + 1).masked_fill(~counts, UNSCORED)
