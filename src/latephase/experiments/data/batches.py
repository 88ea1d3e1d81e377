"""Minibatches of resident images: cropped, flipped and normalised on the device."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from latephase.experiments.config import Data
from latephase.experiments.data.augmentation import Draws, crop_boxes, cut_out, draw, resized_crops
from latephase.experiments.data.images import Images
from latephase.experiments.data.minibatches import Minibatches, seed_of

# Minibatches are prepared many at a time, which spares the cost of starting each small operation on its own.
_BLOCK_BYTES = 16 * 2**20


class Batches(Minibatches):
    """The minibatches of images that are in memory.

    Args:
        images: The training images.
        batch_size: Images in a minibatch.
        seed: Seed of order and augmentation.
        data: The augmentation.
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
        super().__init__(images, batch_size, seed, data, device, channels_last=channels_last)
        _, *self._size = images.shape
        pad = data.crop_padding
        self._pixels = torch.nn.functional.pad(images.pixels, (pad, pad, pad, pad)).to(device)
        self._labels = images.labels.to(device)
        floats = batch_size * images.pixels[0].numel()
        self._block = max(1, _BLOCK_BYTES // (4 * floats))
        self.forget()

    def forget(self) -> None:
        """Drop the block that is ready and the draws of its epoch."""
        self._ready: tuple[int, int] = (-1, -1)
        self._x: tuple[Tensor, ...] = ()
        self._y: tuple[Tensor, ...] = ()
        self._epoch = -1
        self._drawn: tuple[Tensor, Draws] | None = None

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

    def _prepare(self, epoch: int, block: int) -> None:
        """Make a block of minibatches; the draws of its epoch are made once."""
        if self._drawn is None or epoch != self._epoch:
            self._drawn = self._draw(epoch)
            self._epoch = epoch
        begin = block * self._block * self.batch_size
        end = min(begin + self._block * self.batch_size, self.per_epoch * self.batch_size)
        index = self._drawn[0][begin:end].to(self.device)
        draws = self._drawn[1].part(begin, end, self.device)
        if self._data.resized_crop:
            height, width = self._size
            boxes = crop_boxes(height, width, draws.attempts, draws.place)
            x = self._normalise(resized_crops(self._pixels[index], boxes, draws.mirrored))
        else:
            x = self._normalise(self._crops(index, draws))
        if self._data.cutout:
            cut_out(x, draws.hole, self._data.cutout)
        self._x = x.split(self.batch_size)
        self._y = self._labels[index].split(self.batch_size)
        self._ready = (epoch, block)

    def _crops(self, index: Tensor, draws: Draws) -> Tensor:
        # A view of every crop there is; picking whole crops is several times faster than picking pixels.
        height, width = self._size
        every = self._pixels.unfold(2, height, 1).unfold(3, width, 1)
        x = every[index, :, draws.top, draws.left]
        return torch.where(draws.mirrored[:, None, None, None], x.flip(3), x)

    def _draw(self, epoch: int) -> tuple[Tensor, Draws]:
        generator = Generator().manual_seed(seed_of(self._seed, epoch))
        n = len(self._labels)
        index = torch.randperm(n, generator=generator)
        return index, draw(n, min(self._size), self._data, generator)
