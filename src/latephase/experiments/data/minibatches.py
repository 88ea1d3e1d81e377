"""Training minibatches addressed by their number: a function of the seed and the number alone."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from typing import Self

import torch
from torch import Generator, Tensor

from latephase.experiments.config import Data
from latephase.experiments.data.images import Images
from latephase.experiments.data.streamed import StreamedImages
from latephase.experiments.errors import ExperimentError


def minibatches_per_epoch(images: Images | StreamedImages, batch_size: int) -> int:
    """The number of full minibatches in one pass over the images.

    Args:
        images: The training images.
        batch_size: Images in a minibatch.

    Returns:
        The number, at least 1.

    Raises:
        ExperimentError: If there are fewer images than one minibatch takes.
    """
    if batch_size > len(images):
        raise ExperimentError(f"training.batch_size = {batch_size} is more than the {len(images)} images to train on")
    return len(images) // batch_size


class Minibatches(ABC):
    """The endless sequence of training minibatches of one seed.

    Minibatch number i is a function of the seed and i alone: its images and their augmentation come from generators
    seeded by both. So there is no state to save, a run resumes at any minibatch, and all methods of one seed see the
    same minibatches. A last minibatch that is not full is left out.

    Args:
        images: The training images.
        batch_size: Images in a minibatch.
        seed: Seed of order and augmentation.
        data: The augmentation.
        device: Where the minibatches are made.
        channels_last: Memory format of the minibatches.

    Raises:
        ExperimentError: If there are fewer images than one minibatch takes.
    """

    def __init__(
        self,
        images: Images | StreamedImages,
        batch_size: int,
        seed: int,
        data: Data,
        device: torch.device,
        *,
        channels_last: bool = False,
    ) -> None:
        self.per_epoch = minibatches_per_epoch(images, batch_size)
        self.batch_size = batch_size
        self.device = device
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self._data, self._seed, self._images_there = data, seed, len(images)
        mean, std = images.normalisation()
        self._mean = (mean * 255).to(device)[:, None, None]
        self._scale = (1 / (std * 255)).to(device)[:, None, None]

    @abstractmethod
    def at(self, number: int) -> tuple[Tensor, Tensor]:
        """One minibatch.

        Args:
            number: Its number, from 0 on.

        Returns:
            Normalised images, float32 (batch_size, channels, height, width), and labels, int64 (batch_size,).
        """

    @abstractmethod
    def forget(self) -> None:
        """Drop what was prepared for the seed."""

    def with_seed(self, seed: int) -> Self:
        """Other minibatches of the same images, which take up no memory of their own.

        Args:
            seed: Seed of order and augmentation.

        Returns:
            The sequence of that seed.
        """
        other = copy.copy(self)
        other._seed = seed
        other.forget()
        return other

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The augmented minibatches of one pass over the training images.

        Args:
            epoch: Number of the pass, from 0 on; any number is another shuffle.

        Yields:
            Images and labels, as `at` returns them.
        """
        for number in range(epoch * self.per_epoch, (epoch + 1) * self.per_epoch):
            yield self.at(number)

    def plain(self, images: Images | StreamedImages, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Other images in their own order, normalised as the training images are, without augmentation.

        Args:
            images: Images to evaluate on.
            batch_size: Images in a minibatch, of which the last one may be smaller; None takes as many as keep a CPU's
                caches or an accelerator busy.

        Yields:
            Images and labels, as `at` returns them.
        """
        if batch_size is None:
            room = 2 * 2**20 if self.device.type == "cpu" else 64 * 2**20
            channels, height, width = images.shape
            batch_size = min(1000, max(16, room // (4 * channels * height * width)))
        for pixels, labels in images.chunks(batch_size):
            yield self._normalise(pixels.to(self.device)), labels.to(self.device)

    def _turned(self, index: Tensor, epoch: int) -> Tensor:
        """Which images alternating flips mirror in an epoch, (N,): all the others in the next one."""
        return _coins(self._seed, self._images_there)[index] ^ bool(epoch % 2)

    def _normalise(self, pixels: Tensor) -> Tensor:
        x = pixels.to(torch.float32).sub_(self._mean).mul_(self._scale)
        return x.contiguous(memory_format=self.format)


def seed_of(*numbers: int) -> int:
    """A seed for each tuple of numbers, without the collisions of sums and products.

    Args:
        *numbers: Such as seed and epoch.

    Returns:
        The seed.
    """
    text = "/".join(map(str, numbers))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


@lru_cache(maxsize=2)
def _coins(seed: int, n: int) -> Tensor:
    return torch.rand(n, generator=Generator().manual_seed(seed_of(seed))) < 0.5
