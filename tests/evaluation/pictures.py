"""Artificial pictures for the tests of corruptions."""

import numpy as np
import torch
from scipy import ndimage


def pictures(count=6, height=32, width=32):
    """Coloured blobs with edges: smooth regions, texture and contrast, as photographs have."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.standard_normal((count, 3, height, width)), (0, 0, 4, 4), mode="wrap")
    smooth /= smooth.std()
    edges = ndimage.gaussian_filter(rng.standard_normal((count, 1, height, width)), (0, 0, 2, 2), mode="wrap") > 0
    values = 0.45 + 0.15 * smooth + 0.2 * edges + 0.03 * rng.standard_normal((count, 3, height, width))
    return torch.from_numpy((values.clip(0, 1) * 255).astype(np.uint8))


IMAGES = pictures()
