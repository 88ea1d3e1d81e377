"""scikit-learn's 1,797 handwritten digits, 8x8 pixels, which need no download."""

from __future__ import annotations

import torch

from latephase.experiments.config import Data
from latephase.experiments.data.images import Images


def load(data: Data) -> tuple[Images, Images | None]:
    """The digits; they come without a test set of their own.

    Args:
        data: Not used: there is nothing to choose.

    Returns:
        All images, and None.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = torch.from_numpy(raw.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(raw.target).long()
    return Images(pixels, labels, tuple(str(name) for name in raw.target_names), "digits"), None
