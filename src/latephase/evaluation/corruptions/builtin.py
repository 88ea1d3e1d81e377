"""The library's own set of corruptions: 18 kinds at 5 severities, made from any uint8 images."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from latephase.errors import LatePhaseValueError
from latephase.evaluation._checks import at_least
from latephase.evaluation.corruptions import blur, digital, geometry, light, noise
from latephase.evaluation.corruptions.kind import SEVERITIES, Kind
from latephase.evaluation.corruptions.sets import CorruptedSet

OWN_SET = "latephase's own corruptions, version 1"
"""How results on this set are to be named. It is not CIFAR-10-C: kinds of equal name differ in strength and detail."""

CORRUPTIONS: dict[str, Kind] = {
    kind.name: kind for group in (noise, blur, light, digital, geometry) for kind in group.KINDS
}
"""All kinds by name."""


def corrupt(images: Tensor, kind: str, severity: int, *, seed: int = 0, first: int = 0) -> Tensor:
    """Corrupt images.

    What becomes of an image depends on its pixels, the kind, the severity, the seed and its index alone, not on the
    batch it comes in. The random draws are the same at every severity. Lengths are fractions of the shorter side.

    Args:
        images: uint8, (N, 3, height, width).
        kind: A key of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: Seed of the random draws.
        first: Index of the first image in its data set.

    Returns:
        uint8, of the same shape, on the CPU.

    Raises:
        LatePhaseValueError: Another kind, severity, dtype or shape.

    Example:
        >>> corrupt(torch.full((1, 3, 8, 8), 100, dtype=torch.uint8), "brightness", 1).unique()
        tensor([120], dtype=torch.uint8)
    """
    (chosen,) = _kinds([kind])
    if isinstance(severity, bool) or severity not in range(1, SEVERITIES + 1):
        raise LatePhaseValueError(f"corrupt: severity {severity!r}; use 1 to {SEVERITIES}")
    check_images("corrupt", images)
    at_least("corrupt: seed", seed, 0)
    at_least("corrupt: first", first, 0)
    amount = chosen.amounts[severity - 1]
    code = zlib.crc32(kind.encode())
    corrupted = np.empty(tuple(images.shape), dtype=np.uint8)
    for i, pixels in enumerate(images.cpu().numpy()):
        rng = np.random.default_rng([seed, code, first + i])
        changed = chosen.apply(pixels.astype(np.float32) / np.float32(255), amount, rng)
        corrupted[i] = np.rint(changed.clip(0, 1) * 255).astype(np.uint8)
    return torch.from_numpy(corrupted)


def check_images(what: str, images: Tensor) -> None:
    """Check that images are what corruptions take.

    Args:
        what: Who asks, for messages.
        images: The images.

    Raises:
        LatePhaseValueError: Not uint8 of shape (N, 3, height, width).
    """
    if images.dtype != torch.uint8:
        raise LatePhaseValueError(
            f"{what}: images of dtype {images.dtype}; use uint8 from 0 to 255, before any normalisation"
        )
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise LatePhaseValueError(
            f"{what}: images of shape {tuple(images.shape)}; use (N, 3, height, width), and grey images as three equal "
            "channels"
        )


class _Batches:
    """Corrupted minibatches, made anew at every pass."""

    def __init__(self, images: Tensor, labels: Tensor, kind: str, severity: int, seed: int, batch_size: int) -> None:
        self.images, self.labels, self.kind, self.severity = images, labels, kind, severity
        self.seed, self.batch_size = seed, batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(self.images), self.batch_size):
            part = slice(first, first + self.batch_size)
            corrupted = corrupt(self.images[part], self.kind, self.severity, seed=self.seed, first=first)
            yield corrupted, self.labels[part]


def builtin_sets(
    images: Tensor,
    labels: Tensor,
    kinds: Sequence[str] | None = None,
    *,
    seed: int = 0,
    batch_size: int = 500,
) -> list[CorruptedSet]:
    """Every kind at every severity, of the same images.

    Nothing is computed or kept before a set is iterated over.

    Args:
        images: uint8, (N, 3, height, width).
        labels: Class indices, (N,).
        kinds: Keys of `CORRUPTIONS`; by default all of them.
        seed: Seed of the random draws.
        batch_size: Images in a minibatch; the last one may be smaller.

    Returns:
        Sets in the order of kinds, severities 1 to 5 of each.

    Raises:
        LatePhaseValueError: No images, images or labels of another shape or dtype, or an unknown kind.

    Example:
        >>> images, labels = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
        >>> len(builtin_sets(images, labels, ["fog", "rotation"]))
        10
    """
    check_images("builtin_sets", images)
    if not len(images) or labels.shape != images.shape[:1]:
        raise LatePhaseValueError(
            f"builtin_sets: {len(images)} images and labels of shape {tuple(labels.shape)}; use at least one image and "
            "one label for each"
        )
    at_least("builtin_sets: batch_size", batch_size, 1)
    at_least("builtin_sets: seed", seed, 0)
    chosen = _kinds(list(CORRUPTIONS) if kinds is None else kinds)
    return [
        CorruptedSet(kind.name, severity, _Batches(images, labels, kind.name, severity, seed, batch_size))
        for kind in chosen
        for severity in range(1, SEVERITIES + 1)
    ]


def _kinds(names: Sequence[str]) -> list[Kind]:
    for name in names:
        if name not in CORRUPTIONS:
            raise LatePhaseValueError(f"corruption {name!r}; use one of {', '.join(CORRUPTIONS)}")
    return [CORRUPTIONS[name] for name in names]
