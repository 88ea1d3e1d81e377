"""Small images as one uint8 tensor with their labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latephase.experiments.errors import ExperimentError


@dataclass(frozen=True)
class Images:
    """Images of one size, their labels and what the labels are called.

    Attributes:
        pixels: uint8, (N, channels, height, width).
        labels: int64, (N,), from 0 to `len(classes)` - 1.
        classes: Names of the classes.
        source: Where the images come from, for error messages.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if not len(self.pixels):
            raise ExperimentError(f"{self.source} holds no images")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise ExperimentError(
                f"{self.source} has labels from {low} to {high}, but {len(self.classes)} classes take labels "
                f"from 0 to {len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def __reduce__(self) -> tuple:
        # Through NumPy, whose arrays travel to another process by value: tensors would take shared memory, of which
        # containers have little.
        return _images_from_arrays, (self.pixels.numpy(), self.labels.numpy(), self.classes, self.source)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def take(self, index: Tensor) -> Images:
        """Some of the images.

        Args:
            index: int64 positions, (M,).

        Returns:
            Those images, in that order.
        """
        return Images(self.pixels[index], self.labels[index], self.classes, self.source)

    def chunks(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in their order, some at a time.

        Args:
            n: Images at a time.

        Yields:
            Pixels, uint8 (n, channels, height, width), and labels, (n,); the last ones may be fewer.
        """
        yield from zip(self.pixels.split(n), self.labels.split(n), strict=True)

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over all pixels, of values from 0 to 1.

        Returns:
            Two float32 tensors, (channels,); a channel that does not vary gets a deviation of 1.
        """
        counts = torch.stack([torch.bincount(c.flatten().long(), minlength=256) for c in self.pixels.unbind(1)])
        share = counts.double() / counts.sum(dim=1, keepdim=True)
        value = torch.arange(256, dtype=torch.float64) / 255
        mean = share @ value
        std = ((share * (value - mean[:, None]) ** 2).sum(dim=1)).sqrt()
        return mean.float(), torch.where(std > 0, std, 1.0).float()


def stack_images(arrays: list[np.ndarray], source: str) -> Tensor:
    """Stack decoded images.

    Args:
        arrays: uint8 arrays, (height, width, channels).
        source: Where they come from, for error messages.

    Returns:
        uint8, (N, channels, height, width).

    Raises:
        ExperimentError: If there are none, or their sizes differ.
    """
    shapes = sorted({a.shape for a in arrays})
    if not shapes:
        raise ExperimentError(f"{source} holds no images")
    if len(shapes) > 1:
        sizes = ", ".join(f"{w}x{h}" for h, w, _ in shapes[:3])
        raise ExperimentError(f"{source} holds images of several sizes ({sizes}, ...); set data.image_size")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _images_from_arrays(pixels: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], source: str) -> Images:
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels), classes, source)
