"""Minibatches of streamed images: decoded and augmented by threads, ahead of the training."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from latephase.experiments.config import Data
from latephase.experiments.data.augmentation import Draws, crop_boxes, cut_out, draw
from latephase.experiments.data.encoded import BILINEAR, centre_crop, decode
from latephase.experiments.data.minibatches import Minibatches, seed_of
from latephase.experiments.data.streamed import StreamedImages, stack

# Minibatches that are being decoded while one is trained on.
_AHEAD = 3


class StreamedBatches(Minibatches):
    """The minibatches of images that are decoded on the fly.

    The order of an epoch is drawn from (seed, epoch), the augmentation of a minibatch from (seed, epoch, its number
    in the epoch): going on at any minibatch costs nothing but the draw of one order.

    Args:
        images: The training images.
        batch_size: Images in a minibatch.
        seed: Seed of order and augmentation.
        data: The augmentation.
        device: Where the minibatches go.
        channels_last: Memory format of the minibatches.

    Raises:
        ExperimentError: If there are fewer images than one minibatch takes.
    """

    def __init__(
        self,
        images: StreamedImages,
        batch_size: int,
        seed: int,
        data: Data,
        device: torch.device,
        *,
        channels_last: bool = False,
    ) -> None:
        super().__init__(images, batch_size, seed, data, device, channels_last=channels_last)
        self._images = images
        self._pool = images.pool()
        self.forget()

    def forget(self) -> None:
        """Drop the minibatches that are on their way, and the orders of the epochs."""
        self._coming: dict[int, list[Future[np.ndarray]]] = {}
        self._orders: dict[int, Tensor] = {}

    def at(self, number: int) -> tuple[Tensor, Tensor]:
        """One minibatch; the ones after it are begun.

        Args:
            number: Its number, from 0 on.

        Returns:
            Normalised images, float32 (batch_size, channels, height, width), and labels, int64 (batch_size,).

        Raises:
            ExperimentError: If an image cannot be read.
        """
        wanted = range(number, number + _AHEAD + 1)
        for passed in [n for n in self._coming if n not in wanted]:
            for future in self._coming.pop(passed):
                future.cancel()
        for n in wanted:
            if n not in self._coming:
                self._coming[n] = self._begin(n)
        arrays = [future.result() for future in self._coming.pop(number)]
        x = self._normalise(stack(arrays).to(self.device))
        if self._data.cutout:
            cut_out(x, self._draws(number).hole.to(self.device), self._data.cutout)
        return x, self._images.labels[self._index(number)].to(self.device)

    def _begin(self, number: int) -> list[Future[np.ndarray]]:
        draws = self._draws(number)
        cpu = torch.device("cpu")
        return [
            self._pool.submit(self._augmented, i, draws.part(row, row + 1, cpu))
            for row, i in enumerate(self._index(number).tolist())
        ]

    def _augmented(self, i: int, draws: Draws) -> np.ndarray:
        """One training image, uint8 (size, size, 3)."""
        image, size = decode(self._images.files[i]), self._images.size
        if self._data.resized_crop:
            boxes = crop_boxes(image.height, image.width, draws.attempts, draws.place)
            top, left, h, w = (int(side) for side in boxes)
            array = np.asarray(image.crop((left, top, left + w, top + h)).resize((size, size), BILINEAR))
        else:
            pad, top, left = self._data.crop_padding, int(draws.top), int(draws.left)
            whole = np.asarray(centre_crop(image, size, self._images.resize))
            mode: Literal["reflect", "constant"] = "reflect" if self._data.padding == "reflect" else "constant"
            array = np.pad(whole, ((pad, pad), (pad, pad), (0, 0)), mode=mode)[top : top + size, left : left + size]
        return array[:, ::-1] if bool(draws.mirrored) else array

    def _draws(self, number: int) -> Draws:
        epoch, inside = divmod(number, self.per_epoch)
        generator = Generator().manual_seed(seed_of(self._seed, epoch, inside))
        draws = draw(self.batch_size, self._images.size, self._data, generator)
        if self._data.flip == "alternate":
            draws = draws._replace(mirrored=self._turned(self._index(number), epoch))
        return draws

    def _index(self, number: int) -> Tensor:
        epoch, inside = divmod(number, self.per_epoch)
        if epoch not in self._orders:
            generator = Generator().manual_seed(seed_of(self._seed, epoch))
            # The epoch before is still needed while the first minibatches of this one are begun.
            kept = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders = kept | {epoch: torch.randperm(len(self._images), generator=generator)}
        return self._orders[epoch][inside * self.batch_size : (inside + 1) * self.batch_size]
