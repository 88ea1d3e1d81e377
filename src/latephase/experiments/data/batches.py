"""Minibatches of resident images: cropped, flipped and normalised on the device, addressed by their number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from latephase.experiments.config import Data
from latephase.experiments.data.images import Images
from latephase.experiments.errors import ExperimentError

# Minibatches are prepared many at a time, which spares the cost of starting each small operation on its own.
_BLOCK_BYTES = 16 * 2**20


def minibatches_per_epoch(images: Images, batch_size: int) -> int:
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


class Batches:
    """The endless sequence of training minibatches of one seed.

    Minibatch number i is a function of the seed and i alone: order, crops and flips of an epoch are drawn from a
    generator seeded by both. So there is no state to save, a run resumes at any minibatch, and all methods of one
    seed see the same minibatches. A last minibatch that is not full is left out.

    Args:
        images: The training images.
        batch_size: Images in a minibatch.
        seed: Seed of order and augmentation.
        data: Crop padding and flips.
        device: Where the images live and the minibatches are made.
        channels_last: Memory format of the minibatches.

    Raises:
        ExperimentError: If there are fewer images than one minibatch takes.
    """

    def __init__(
        self,
        images: Images,
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
        mean, std = images.normalisation()
        self._mean = (mean * 255).to(device)[:, None, None]
        self._scale = (1 / (std * 255)).to(device)[:, None, None]
        self._size = images.pixels.shape[-2:]
        pad = data.crop_padding
        self._pad, self._flip, self._seed = pad, data.flip, seed
        self._pixels = torch.nn.functional.pad(images.pixels, (pad, pad, pad, pad)).to(device)
        self._labels = images.labels.to(device)
        floats = batch_size * images.pixels[0].numel()
        self._block = max(1, _BLOCK_BYTES // (4 * floats))
        self._ready: tuple[int, int] = (-1, -1)
        self._x: tuple[Tensor, ...] = ()
        self._y: tuple[Tensor, ...] = ()
        self._epoch = -1
        self._draws: tuple[Tensor, ...] = ()

    def at(self, number: int) -> tuple[Tensor, Tensor]:
        """One minibatch.

        Args:
            number: Its number, from 0 on.

        Returns:
            Normalised images, float32 (batch_size, channels, height, width), and labels, int64 (batch_size,).
        """
        epoch, inside = divmod(number, self.per_epoch)
        block, position = divmod(inside, self._block)
        if self._ready != (epoch, block):
            self._prepare(epoch, block)
        return self._x[position], self._y[position]

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The augmented minibatches of one pass over the training images.

        Args:
            epoch: Number of the pass, from 0 on; any number is another shuffle.

        Yields:
            Images and labels, as `at` returns them.
        """
        for number in range(epoch * self.per_epoch, (epoch + 1) * self.per_epoch):
            yield self.at(number)

    def plain(self, images: Images, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
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
            batch_size = min(1000, max(16, room // (4 * images.pixels[0].numel())))
        for pixels, labels in zip(images.pixels.split(batch_size), images.labels.split(batch_size), strict=True):
            yield self._normalise(pixels.to(self.device)), labels.to(self.device)

    def _normalise(self, pixels: Tensor) -> Tensor:
        x = pixels.to(torch.float32).sub_(self._mean).mul_(self._scale)
        return x.contiguous(memory_format=self.format)

    def _prepare(self, epoch: int, block: int) -> None:
        """Make a block of minibatches; the draws of its epoch are made once."""
        if epoch != self._epoch:
            self._draws = self._draw(epoch)
            self._epoch = epoch
        begin = block * self._block * self.batch_size
        end = min(begin + self._block * self.batch_size, self.per_epoch * self.batch_size)
        index, top, left, mirrored = (draw[begin:end] for draw in self._draws)
        height, width = self._size
        rows = (top[:, None] + torch.arange(height, device=self.device))[:, None, :, None]
        columns = torch.arange(width, device=self.device)
        columns = torch.where(mirrored[:, None], columns.flip(0), columns) + left[:, None]
        channels = torch.arange(self._pixels.shape[1], device=self.device)[:, None, None]
        pixels = self._pixels[index[:, None, None, None], channels, rows, columns[:, None, None, :]]
        self._x = self._normalise(pixels).split(self.batch_size)
        self._y = self._labels[index].split(self.batch_size)
        self._ready = (epoch, block)

    def _draw(self, epoch: int) -> tuple[Tensor, ...]:
        generator = Generator().manual_seed(_seed_of(self._seed, epoch))
        n = len(self._labels)
        index = torch.randperm(n, generator=generator)
        top, left = torch.randint(2 * self._pad + 1, (2, n), generator=generator)
        mirrored = torch.rand(n, generator=generator) < (0.5 if self._flip else 0.0)
        return tuple(draw.to(self.device) for draw in (index, top, left, mirrored))


def _seed_of(seed: int, epoch: int) -> int:
    """A seed for each pair, without the collisions of sums and products."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:7], "big")
