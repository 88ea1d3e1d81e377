"""Images that are decoded each time they are needed, because there are too many to keep in memory."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latephase.experiments.data.encoded import Encoded, centre_crop, decode

#: Mean and standard deviation of ImageNet's channels, which torchvision's models are normalised with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class StreamedImages:
    """Where images lie, their labels and what the labels are called; no pixels.

    Attributes:
        files: The images, N of them.
        labels: int64, (N,), from 0 to `len(classes)` - 1.
        classes: Names of the classes.
        source: Where the images come from, for error messages.
        size: Side in pixels that every image is cropped to.
        resize: Pixels that its shorter side is resized to before that.
        threads: Threads that decode; None takes one for each core.
    """

    files: tuple[Encoded, ...]
    labels: Tensor
    classes: tuple[str, ...]
    source: str
    size: int
    resize: int
    threads: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __reduce__(self) -> tuple:
        # Through NumPy, whose arrays travel to another process by value: tensors would take shared memory.
        fields = (self.files, self.labels.numpy(), self.classes, self.source, self.size, self.resize, self.threads)
        return _from_array, fields

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each image."""
        return 3, self.size, self.size

    def take(self, index: Tensor) -> StreamedImages:
        """Some of the images.

        Args:
            index: int64 positions, (M,).

        Returns:
            Those images, in that order.
        """
        files = tuple(self.files[i] for i in index.tolist())
        labels = self.labels[index]
        return StreamedImages(files, labels, self.classes, self.source, self.size, self.resize, self.threads)

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """ImageNet's mean and standard deviation of each channel, of values from 0 to 1.

        Returns:
            Two float32 tensors, (3,).
        """
        return torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)

    def chunks(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in their order, resized and centre-cropped, some at a time; the next are decoded meanwhile.

        Args:
            n: Images at a time.

        Yields:
            Pixels, uint8 (n, 3, size, size), and labels, (n,); the last ones may be fewer.

        Raises:
            ExperimentError: If an image cannot be read.
        """
        with self.pool() as pool:
            chunks = iter(torch.arange(len(self)).split(n))
            waiting = deque((i, pool.map(self._decoded, i.tolist())) for i in itertools.islice(chunks, 2))
            while waiting:
                index, arrays = waiting.popleft()
                pixels = stack(list(arrays))
                waiting.extend((i, pool.map(self._decoded, i.tolist())) for i in itertools.islice(chunks, 1))
                yield pixels, self.labels[index]

    def pool(self) -> ThreadPoolExecutor:
        """Threads to decode with: most of the work is done outside of Python's lock."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return ThreadPoolExecutor(self.threads or cores or 1, thread_name_prefix="decode")

    def _decoded(self, i: int) -> np.ndarray:
        return np.asarray(centre_crop(decode(self.files[i]), self.size, self.resize))


def stack(arrays: list[np.ndarray]) -> Tensor:
    """Stack images of one size.

    Args:
        arrays: uint8, (height, width, channels).

    Returns:
        uint8, (N, channels, height, width).
    """
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def _from_array(files: tuple[Encoded, ...], labels: np.ndarray, *fields: Any) -> StreamedImages:
    return StreamedImages(files, torch.from_numpy(labels), *fields)
