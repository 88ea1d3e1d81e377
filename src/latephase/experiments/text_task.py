"""Language modelling: the next character of a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from latephase.evaluation import Metrics
from latephase.experiments.config import Recipe
from latephase.experiments.models import build_text_model
from latephase.experiments.task import Batches, Task
from latephase.experiments.text import UNSCORED, Corpus, Streams, Text, Windows, held_out

# Characters of held-out text that go through the model in one pass.
_AT_ONCE = 8192


@dataclass(frozen=True)
class HeldOut:
    """Windows of held-out text.

    Attributes:
        tokens: What is read, int64, (N, length).
        scored: Which predictions count, bool, (N, length): of the others only the state is needed.
    """

    tokens: Tensor
    scored: Tensor


class TextTask(Task):
    """A distribution over the next character, at every character of a text.

    The state of a recurrent model goes on from one minibatch of contiguous streams to the next, cut off from its
    gradients; an epoch begins with none. Whose state a member goes on from is `text.state`. Held-out text is read in
    overlapping windows, so that every model, recurrent or not, and every member predicts from the same characters.

    Args:
        recipe: Data, model and training.
        corpus: The text.
        seed: Seed of weights, and of the windows if they are drawn.
        device: Where model and minibatches live.
    """

    metrics = ("bpc", "accuracy", "nll", "ece", "brier")
    kind = "characters"

    def __init__(self, recipe: Recipe, corpus: Corpus, seed: int, device: torch.device) -> None:
        super().__init__(recipe, seed, device)
        self.corpus = corpus
        self._states: dict[int, Any] = {}
        self._fresh = True

    @cached_property
    def batches(self) -> Batches:
        """Minibatches of contiguous streams, or of windows at random places."""
        return _Flat(self._reader, self.seed)

    @cached_property
    def _streams(self) -> Streams:
        return Streams(self.corpus.train, self.recipe.training.batch_size, self.recipe.text.length, self.device)

    def _reader(self, seed: int) -> Streams | Windows:
        if self.recipe.text.order == "streams":
            return self._streams
        size, length = self.recipe.training.batch_size, self.recipe.text.length
        return Windows(self.corpus.train, size, length, seed, self.device)

    @property
    def sizes(self) -> dict[str, int]:
        """Size of the vocabulary, and characters in each part."""
        corpus = self.corpus
        parts = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
        return {"classes": len(corpus.vocabulary), **{name: len(part) for name, part in parts.items()}}

    @property
    def per_epoch(self) -> int:
        """Minibatches of one pass over the training text."""
        return self.batches.per_epoch

    def fresh_model(self, seed: int) -> nn.Module:
        """The recipe's language model for this vocabulary."""
        model = build_text_model(self.recipe.model, vocabulary=len(self.corpus.vocabulary), seed=seed)
        return model.to(self.device)

    def validation(self) -> Iterator[tuple[HeldOut, Tensor]]:
        """Windows of the validation text, in which every character but the first is predicted once."""
        return self._windows(self.corpus.validation)

    def test(self) -> Iterator[tuple[HeldOut, Tensor]]:
        """The same of the test text."""
        return self._windows(self.corpus.test)

    def _windows(self, text: Text) -> Iterator[tuple[HeldOut, Tensor]]:
        config = self.recipe.text
        length = config.length if config.window is None else config.window
        rows = max(1, _AT_ONCE // length)
        for tokens, labels in held_out(text, rows, length, config.context, self.device):
            scored = labels != UNSCORED
            yield HeldOut(tokens, scored), labels[scored]

    def minibatch(self, step: int, turn: int | None, since: int | None) -> tuple[Tensor, Tensor]:
        """The minibatch of the stream, or of the member's own streams."""
        if self.recipe.text.order == "windows":
            return self.batches.at(step)
        streams = self._streams
        if self.recipe.text.state == "own" and turn is not None and since is not None:
            K = self.recipe.late_phase.members
            streams, step = streams.of_member(turn, K, begin=since), (step - since) // K
        x, y, self._fresh = streams.at(step)
        return x, y.flatten()

    def slot(self, turn: int | None) -> int:
        """One state for all, or one for each member."""
        return (turn or 0) if self.recipe.text.state == "own" else 0

    def forward(self, model: nn.Module, x: Tensor, slot: int) -> Tensor:
        """A forward pass that goes on from the slot's state, and keeps the new one."""
        carried = self.recipe.text.order == "streams" and self.recipe.text.state != "zero"
        state = None if self._fresh or not carried else self._states.get(slot)
        logits, state = model(x, _moved(state, self.device))
        if carried and state is not None:
            self._states[slot] = tuple(part.detach() for part in state)
        return logits.flatten(0, 1)

    def predict(self, call: Callable[[Tensor], Any], x: HeldOut) -> Tensor:
        """The predictions of the characters that are scored, one below the other."""
        logits, _ = call(x.tokens)
        return logits[..., x.scored, :]

    def scores(self, metrics: Metrics) -> dict[str, float]:
        """Bits per character, and what there is of every classifier."""
        values = metrics.compute()
        return {"bpc": values["nll"] / math.log(2), **values}

    def state_dict(self) -> dict[str, Any]:
        """The carried states."""
        return {"slots": list(self._states), "states": list(self._states.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the carried states."""
        self._states = dict(zip(state["slots"], state["states"], strict=True))


class _Flat:
    """The minibatches of a text with the labels of all rows one below the other."""

    def __init__(self, reader: Callable[[int], Streams | Windows], seed: int) -> None:
        self._make, self._reader = reader, reader(seed)
        self.per_epoch = self._reader.per_epoch

    def at(self, number: int) -> tuple[Tensor, Tensor]:
        x, y, _ = self._reader.at(number)
        return x, y.flatten()

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self.at, range(epoch * self.per_epoch, (epoch + 1) * self.per_epoch))

    def with_seed(self, seed: int) -> Self:
        return type(self)(self._make, seed)


def _moved(state: Any, device: torch.device) -> Any:
    """Saved states come back on the CPU."""
    return None if state is None else tuple(part.to(device) for part in state)
