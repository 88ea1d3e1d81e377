"""Images of pure noise: out-of-distribution sets that need no file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from latephase.errors import LatePhaseValueError
from latephase.evaluation._checks import at_least

NOISES = ("gaussian", "uniform")


class NoiseImages:
    """Images of independent pixels, as in Liang, Li and Srikant (ICLR 2018).

    "gaussian" draws every value from a normal distribution with mean 0.5 and standard deviation 1, clipped to [0, 1];
    "uniform" draws it evenly from [0, 1]. Image i is a function of the kind, the seed and i alone, whatever the batch
    size. Iterating gives uint8 images, to be normalised as the model's data is; it can be done again.

    Args:
        kind: "gaussian" or "uniform".
        count: How many images.
        shape: Of one image, (channels, height, width).
        seed: Seed of the pixels.
        batch_size: Images in a minibatch; the last one may be smaller.

    Raises:
        LatePhaseValueError: An unknown kind, no images, or an empty shape.

    Example:
        >>> sum(len(batch) for batch in NoiseImages("uniform", 5, (3, 4, 4), batch_size=2))
        5
    """

    def __init__(
        self, kind: str, count: int, shape: tuple[int, int, int], *, seed: int = 0, batch_size: int = 500
    ) -> None:
        if kind not in NOISES:
            raise LatePhaseValueError(f"NoiseImages: {kind!r}; use one of {', '.join(map(repr, NOISES))}")
        if len(shape) != 3 or min(shape) < 1:
            raise LatePhaseValueError(f"NoiseImages: shape {shape!r}; use (channels, height, width)")
        self.kind, self.shape, self.seed = kind, tuple(shape), at_least("NoiseImages: seed", seed, 0)
        self.count = at_least("NoiseImages: count", count, 1)
        self.batch_size = at_least("NoiseImages: batch_size", batch_size, 1)

    def __iter__(self) -> Iterator[Tensor]:
        for first in range(0, self.count, self.batch_size):
            stop = min(first + self.batch_size, self.count)
            yield torch.from_numpy(np.stack([self._image(i) for i in range(first, stop)]))

    def _image(self, index: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, NOISES.index(self.kind), index])
        if self.kind == "uniform":
            return rng.integers(0, 256, size=self.shape, dtype=np.uint8)
        values = rng.standard_normal(self.shape) + 0.5
        return np.rint(values.clip(0, 1) * 255).astype(np.uint8)
