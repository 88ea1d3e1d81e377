"""Corrupted CIFAR test sets as published: one .npy file for each kind, severities one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latephase.errors import LatePhaseError, LatePhaseValueError
from latephase.evaluation._checks import at_least
from latephase.evaluation.corruptions.kind import SEVERITIES
from latephase.evaluation.corruptions.sets import CorruptedSet

PUBLISHED_KINDS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The 15 kinds that the published mean corruption error is over."""

EXTRA_KINDS = ("gaussian_blur", "saturate", "spatter", "speckle_noise")
"""The four that are published beside them, for validation."""


class _Batches:
    """Minibatches out of a memory-mapped file: only one of them is in memory at a time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, batch_size: int) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(self.images), self.batch_size):
            part = slice(first, first + self.batch_size)
            pixels = np.array(self.images[part].transpose(0, 3, 1, 2), order="C")
            yield torch.from_numpy(pixels), torch.from_numpy(self.labels[part].astype(np.int64))


def published_sets(
    folder: str | Path, kinds: Sequence[str] = PUBLISHED_KINDS, *, batch_size: int = 500
) -> list[CorruptedSet]:
    """Read CIFAR-10-C or CIFAR-100-C (Hendrycks and Dietterich, ICLR 2019), or arrays of their layout.

    `labels.npy` holds a class for every image; `<kind>.npy` holds uint8 images (5 n, height, width, 3), the n images at
    severity 1, then 2 and so on to 5. Files are mapped, not read, and nothing in them is unpickled.

    Args:
        folder: Where the files are.
        kinds: Names of the files, without `.npy`; by default the 15 of the published mean.
        batch_size: Images in a minibatch; the last one of a severity may be smaller.

    Returns:
        Sets in the order of kinds, severities 1 to 5 of each.

    Raises:
        LatePhaseError: A file is missing or no array.
        LatePhaseValueError: No kinds, or arrays of another shape or dtype.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> folder = tempfile.TemporaryDirectory()
        >>> np.save(f"{folder.name}/labels.npy", np.arange(10) % 2)
        >>> np.save(f"{folder.name}/fog.npy", np.zeros((10, 8, 8, 3), dtype=np.uint8))  # two images, five severities
        >>> [found.severity for found in published_sets(folder.name, ["fog"])]
        [1, 2, 3, 4, 5]
        >>> folder.cleanup()
    """
    at_least("published_sets: batch_size", batch_size, 1)
    root = Path(folder)
    if not kinds:
        raise LatePhaseValueError(f"published_sets: no kinds; the published ones are {', '.join(PUBLISHED_KINDS)}")
    missing = [name for name in ("labels", *kinds) if not (root / f"{name}.npy").is_file()]
    if missing:
        there = sorted(path.stem for path in root.glob("*.npy")) if root.is_dir() else None
        holds = "there is no such folder" if there is None else f"it holds {', '.join(there) or 'no .npy files'}"
        raise LatePhaseError(
            f"{root} has no {', '.join(f'{name}.npy' for name in missing)} ({holds}); unpack CIFAR-10-C.tar there, or "
            "name the kinds that you have"
        )
    labels = _load(root / "labels.npy")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise LatePhaseValueError(
            f"{root / 'labels.npy'}: {labels.dtype} of shape {labels.shape}; it must hold one integer class an image"
        )
    sets = []
    for kind in kinds:
        images = _load(root / f"{kind}.npy")
        count = len(images) // SEVERITIES if images.ndim else 0
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not count:
            raise LatePhaseValueError(
                f"{root / kind}.npy: {images.dtype} of shape {images.shape}; it must be uint8 of shape "
                f"({SEVERITIES} n, height, width, 3)"
            )
        if len(images) % SEVERITIES or len(images) != len(labels):
            raise LatePhaseValueError(
                f"{root / kind}.npy: {len(images)} images, and labels.npy has {len(labels)}; both must be the same "
                f"multiple of {SEVERITIES}"
            )
        for severity in range(SEVERITIES):
            part = slice(severity * count, (severity + 1) * count)
            sets.append(CorruptedSet(kind, severity + 1, _Batches(images[part], labels[part], batch_size)))
    return sets


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise LatePhaseError(f"cannot read {path} as a plain array; it may be truncated ({reason})") from error
