"""Minibatches of resident images: cropped, flipped and normalised on the device."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from latephase.experiments.config import Data
from latephase.experiments.data.ahead import Ahead
from latephase.experiments.data.augmentation import (
    Draws,
    crop_boxes,
    cut_out,
    draw,
    gathered_crops,
    padded,
    resized_crops,
    whole_crops,
)
from latephase.experiments.data.images import Images
from latephase.experiments.data.minibatches import Minibatches, seed_of
from latephase.experiments.errors import ExperimentError

# Minibatches are prepared many at a time, which spares the cost of starting each small operation on its own. A CPU's
# caches hold little; an accelerator is done with much before the next operation has begun.
_BLOCK_BYTES = {"cpu": 16 * 2**20}
_BLOCK_BYTES_ELSEWHERE = 128 * 2**20


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
        ExperimentError: If there are fewer images than one minibatch takes, or they are too small to be reflected.
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
        if data.padding == "reflect" and data.crop_padding >= min(self._size):
            raise ExperimentError(
                f"data.crop_padding = {data.crop_padding} is not valid beside data.padding = reflect; images of "
                f"{self._size[0]}x{self._size[1]} pixels can be reflected by at most {min(self._size) - 1}"
            )
        # What launches kernels wants few of them; a CPU wants to copy whole rows.
        self._crop = whole_crops if device.type == "cpu" else gathered_crops
        layout = torch.contiguous_format if device.type == "cpu" else torch.channels_last
        pixels = padded(images.pixels.to(device), data.crop_padding, data.padding)
        self._pixels = pixels.contiguous(memory_format=layout)
        self._labels = images.labels.to(device)
        floats = batch_size * images.pixels[0].numel()
        self._block = max(1, _BLOCK_BYTES.get(device.type, _BLOCK_BYTES_ELSEWHERE) // (4 * floats))
        self.forget()

    def forget(self) -> None:
        """Drop the block that is ready and the draws of its epoch."""
        self._ready: tuple[int, int] = (-1, -1)
        self._x: tuple[Tensor, ...] = ()
        self._y: tuple[Tensor, ...] = ()
        self._epoch = -1
        self._drawn: tuple[Tensor, Draws] | None = None
        self._ahead = Ahead[tuple[int, int]](self.device)

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
            x, y = self._ahead.take(self._block_of, (epoch, block), self._after(epoch, block))
            self._x, self._y = x.split(self.batch_size), y.split(self.batch_size)
            self._ready = (epoch, block)
        return self._x[position], self._y[position]

    def _after(self, epoch: int, block: int) -> tuple[int, int]:
        """The block that follows one."""
        last = (block + 1) * self._block >= self.per_epoch
        return (epoch + 1, 0) if last else (epoch, block + 1)

    def _block_of(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Make a block of minibatches; the draws of its epoch are made once."""
        epoch, block = place
        if self._drawn is None or epoch != self._epoch:
            self._drawn = self._draw(epoch)
            self._epoch = epoch
        begin = block * self._block * self.batch_size
        end = min(begin + self._block * self.batch_size, self.per_epoch * self.batch_size)
        index = self._drawn[0][begin:end]
        draws = self._drawn[1].part(begin, end, self.device)
        if self._data.resized_crop:
            height, width = self._size
            boxes = crop_boxes(height, width, draws.attempts, draws.place)
            x = self._normalise(resized_crops(self._pixels[index], boxes, draws.mirrored))
        else:
            x = self._normalise(self._crop(self._pixels, index, draws, *self._size))
        if self._data.cutout:
            cut_out(x, draws.hole, self._data.cutout)
        return x, self._labels[index]

    def _draw(self, epoch: int) -> tuple[Tensor, Draws]:
        generator = Generator().manual_seed(seed_of(self._seed, epoch))
        n = len(self._labels)
        index = torch.randperm(n, generator=generator)
        draws = draw(n, min(self._size), self._data, generator)
        if self._data.flip == "alternate":
            draws = draws._replace(mirrored=self._turned(index, epoch))
        return index.to(self.device), draws.part(0, n, self.device)
