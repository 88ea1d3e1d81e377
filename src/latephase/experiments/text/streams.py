"""Training text as minibatches addressed by their number: contiguous streams, or windows at random."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from latephase.experiments.data.minibatches import seed_of
from latephase.experiments.errors import ExperimentError
from latephase.experiments.text.corpus import Text


def minibatches_per_epoch(size: int, batch_size: int, length: int) -> int:
    """The number of minibatches in which a text is read once.

    Args:
        size: Bytes of the training text.
        batch_size: Streams or windows in a minibatch.
        length: Characters of each that are predicted.

    Returns:
        The number, at least 1; the rest of the text, less than a minibatch, is left out.

    Raises:
        ExperimentError: If the text is shorter than one minibatch.
    """
    needed = batch_size * length + 1
    if size < needed:
        raise ExperimentError(
            f"the training text has {size:,} bytes; training.batch_size = {batch_size} streams of {length} "
            f"characters each need at least {needed:,}"
        )
    return (size - 1) // (batch_size * length)


class Streams:
    """The text cut into contiguous streams, read side by side: for truncated back-propagation with carried state.

    With B streams, stream i is the i-th of B equal parts of the text and minibatch t its t-th window, so that a
    recurrent network which keeps its hidden state from one minibatch to the next reads on where it was. One epoch
    predicts every character but the first exactly once, save for a rest at the end that fills no minibatch. Nothing
    is random, and there is no state: a run resumes at any number.

    Args:
        text: The training text.
        batch_size: Streams.
        length: Characters in a window, over which gradients are propagated.
        device: Where the minibatches are wanted.

    Attributes:
        per_epoch: Minibatches in an epoch.

    Raises:
        ExperimentError: If the text is shorter than one minibatch.
    """

    def __init__(self, text: Text, batch_size: int, length: int, device: torch.device) -> None:
        self.per_epoch = minibatches_per_epoch(len(text), batch_size, length)
        self.batch_size, self.length, self.device = batch_size, length, device
        self._text = text.to(device)
        self._first: int | None = None

    def at(self, step: int) -> tuple[Tensor, Tensor, bool]:
        """One minibatch.

        Args:
            step: Its number, from 0 on; of a member's own streams the number of its turn.

        Returns:
            Tokens and the ones that follow them, int64 (batch_size, length) each, and whether the hidden state must
            begin at zero: where the streams begin, and at a member's first turn.
        """
        window = (step + (self._first or 0)) % self.per_epoch
        begin, stride = window * self.length, self.per_epoch * self.length
        rows = self._text.raw[begin : begin + (self.batch_size - 1) * stride + self.length + 1]
        tokens = self._text.lookup[rows.unfold(0, self.length + 1, stride).long()]
        fresh = window == 0 or (step == 0 and self._first is not None)
        return tokens[:, :-1], tokens[:, 1:], fresh

    def of_member(self, k: int, members: int, begin: int = 0) -> Streams:
        """A member's own streams: the same ones, entered k / members of the way further on, and wrapped round.

        As every member has one turn in `members` minibatches, all of them together still read the text once in an
        epoch, each another part of it.

        Args:
            k: The member, from 0 on.
            members: How many there are.
            begin: Where member 0 enters: the number of minibatches trained on before.

        Returns:
            Streams of which `at` takes the number of the member's turn, 0 for its first.
        """
        other = object.__new__(Streams)
        vars(other).update(vars(self))
        other._first = (begin + k * self.per_epoch // members) % self.per_epoch
        return other


class Windows:
    """Windows at random places of the text: for models that carry nothing from one minibatch to the next.

    The windows of a minibatch are drawn, each place being as likely as any other, from a generator seeded by the seed
    and the minibatch's number: there is no state, and a run resumes at any number.

    Args:
        text: The training text.
        batch_size: Windows in a minibatch.
        length: Characters in a window that are predicted.
        seed: What the windows are drawn from.
        device: Where the minibatches are wanted.

    Attributes:
        per_epoch: Minibatches that have as many characters as the text.

    Raises:
        ExperimentError: If the text is shorter than one minibatch.
    """

    def __init__(self, text: Text, batch_size: int, length: int, seed: int, device: torch.device) -> None:
        self.per_epoch = minibatches_per_epoch(len(text), batch_size, length)
        self.batch_size, self.length, self.seed, self.device = batch_size, length, seed, device
        self._text = text.to(device)
        self._window = torch.arange(length + 1, device=device)

    def at(self, step: int) -> tuple[Tensor, Tensor, bool]:
        """One minibatch.

        Args:
            step: Its number, from 0 on.

        Returns:
            Tokens and the ones that follow them, int64 (batch_size, length) each, and True: nothing is carried.
        """
        generator = Generator().manual_seed(seed_of(self.seed, step))
        begin = torch.randint(len(self._text) - self.length, (self.batch_size, 1), generator=generator)
        tokens = self._text.tokens(begin.to(self.device) + self._window)
        return tokens[:, :-1], tokens[:, 1:], True
