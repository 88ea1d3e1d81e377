"""CIFAR-10 and CIFAR-100 as torchvision downloads them, or from parquet copies."""

from __future__ import annotations

import torch

from latephase.experiments.config import Data
from latephase.experiments.data import parquet
from latephase.experiments.data.images import Images
from latephase.experiments.errors import ExperimentError


def load_cifar10(data: Data) -> tuple[Images, Images | None]:
    """CIFAR-10 (Krizhevsky, 2009).

    Args:
        data: `train` is the folder to download to, by default `data/`; or `train` and `test` are parquet files.

    Returns:
        The 50,000 training and the 10,000 test images.

    Raises:
        ExperimentError: If they are neither there nor to be had.
    """
    return _load("CIFAR10", data)


def load_cifar100(data: Data) -> tuple[Images, Images | None]:
    """CIFAR-100 (Krizhevsky, 2009), with its 100 fine labels.

    Args:
        data: `train` is the folder to download to, by default `data/`; or `train` and `test` are parquet files.

    Returns:
        The 50,000 training and the 10,000 test images.

    Raises:
        ExperimentError: If they are neither there nor to be had.
    """
    return _load("CIFAR100", data)


def _load(name: str, data: Data) -> tuple[Images, Images | None]:
    if data.train is not None and data.train.endswith(".parquet"):
        return parquet.load(data)
    from torchvision import datasets

    root = data.train or "data"
    parts = []
    for train in (True, False):
        try:
            part = getattr(datasets, name)(root, train=train, download=True)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ExperimentError(f"cannot read {name} in {root}, nor download it to there ({reason})") from error
        pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        parts.append(Images(pixels, torch.tensor(part.targets), tuple(part.classes), f"{name} in {root}"))
    return parts[0], parts[1]
