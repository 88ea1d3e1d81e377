"""What a recipe trains on, as far as its cost depends on it: known without files where that is possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from latephase.experiments.config import Model, Recipe
from latephase.experiments.data import load_images
from latephase.experiments.errors import ExperimentError
from latephase.experiments.models import build_model, build_text_model
from latephase.experiments.tasks import TEXT
from latephase.experiments.text import load_corpus, minibatches_per_epoch


@dataclass(frozen=True)
class Images:
    """Images to train on.

    Attributes:
        channels: Channels of an image.
        size: Its side in pixels.
        classes: Number of classes.
        train: Number of images to train on.
        each: Samples in a row of a minibatch.
        kind: What they are called, and what one of them is.
    """

    channels: int
    size: int
    classes: int
    train: int
    each: ClassVar[int] = 1
    kind: ClassVar[tuple[str, str]] = ("images", "image")

    def per_epoch(self, batch_size: int) -> int:
        """Minibatches of an epoch.

        Args:
            batch_size: Images in each.

        Returns:
            Their number.

        Raises:
            ExperimentError: If it is none.
        """
        if batch_size > self.train:
            raise ExperimentError(
                f"training.batch_size = {batch_size} is more than the {self.train} images to train on"
            )
        return self.train // batch_size

    def build(self, config: Model) -> nn.Module:
        """The recipe's model for them.

        Args:
            config: The model.

        Returns:
            The model.
        """
        return build_model(config, classes=self.classes, channels=self.channels, size=self.size, seed=0)

    def minibatch(self, rows: int, device: torch.device, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
        """A minibatch of noise.

        Args:
            rows: How many images.
            device: Where.
            layout: Memory format of the images.

        Returns:
            Images and labels, (rows,).
        """
        x = torch.randn(rows, self.channels, self.size, self.size, device=device).to(memory_format=layout)
        return x, torch.randint(self.classes, (rows,), device=device)

    def logits(self, output: Any) -> Tensor:
        """The logits in what the model returns.

        Args:
            output: Logits.

        Returns:
            One row for each sample.
        """
        logits: Tensor = output
        return logits


@dataclass(frozen=True)
class Characters:
    """A text to train on.

    Attributes:
        vocabulary: Number of distinct characters.
        length: Characters in a row of a minibatch.
        train: Number of characters to train on.
        kind: What they are called, and what one of them is.
    """

    vocabulary: int
    length: int
    train: int
    kind: ClassVar[tuple[str, str]] = ("characters", "character")

    @property
    def each(self) -> int:
        """Samples in a row of a minibatch."""
        return self.length

    def per_epoch(self, batch_size: int) -> int:
        """Minibatches of an epoch; see `Images.per_epoch`."""
        return minibatches_per_epoch(self.train, batch_size, self.length)

    def build(self, config: Model) -> nn.Module:
        """The recipe's model for them; see `Images.build`."""
        return build_text_model(config, self.vocabulary, seed=0)

    def minibatch(self, rows: int, device: torch.device, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
        """A minibatch of noise; see `Images.minibatch`."""
        tokens = torch.randint(self.vocabulary, (rows, self.length + 1), device=device)
        return tokens[:, :-1], tokens[:, 1:].flatten()

    def logits(self, output: Any) -> Tensor:
        """The logits in what the model returns, which has a state beside them."""
        logits: Tensor = output[0]
        return logits.flatten(0, 1)


# Channels, side, classes, training images and whether there are test images beside them.
_KNOWN = {
    "digits": (1, 8, 10, 1797, False),
    "cifar10": (3, 32, 10, 50_000, True),
    "cifar100": (3, 32, 100, 50_000, True),
}


def samples_of(recipe: Recipe) -> Images | Characters:
    """What a recipe trains on, without its files where that is known.

    Args:
        recipe: The recipe.

    Returns:
        The published data sets as they are, image folders as `data.images` and `data.classes` say, texts as
        `text.bytes` and `text.distinct`; anything else is read.

    Raises:
        ExperimentError: If it has to be read and cannot be.
    """
    data, text = recipe.data, recipe.text
    if data.name == TEXT:
        if text.bytes is not None and text.distinct is not None:
            return Characters(text.distinct, text.length, text.bytes * 90 // 100)
        corpus = load_corpus(data.train)
        return Characters(len(corpus.vocabulary), text.length, len(corpus.train))
    if data.name in _KNOWN:
        channels, size, classes, n, has_test = _KNOWN[data.name]
    elif data.images is not None and data.classes is not None and data.image_size is not None:
        channels, size, classes, n, has_test = 3, data.image_size, data.classes, data.images, data.test is not None
    else:
        images, test = load_images(data)
        channels, _, size = images.shape
        classes, n, has_test = len(images.classes), len(images), test is not None
    held_out = data.validation + (0 if has_test else data.test_images if data.test_images is not None else n // 3)
    return Images(channels, size, classes, data.subset or n - held_out)
