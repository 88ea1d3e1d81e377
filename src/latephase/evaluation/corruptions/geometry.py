"""Corruptions that move or cover what the image shows."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from latephase.evaluation.corruptions.kind import Image, Kind, side


def _elastic(image: Image, length: float, rng: np.random.Generator) -> Image:
    """Every pixel comes from somewhere nearby; the displacement is smooth over a tenth of the side."""
    shape = image.shape[1:]
    grid = []
    for place in np.indices(shape, dtype=np.float64):
        field = ndimage.gaussian_filter(rng.standard_normal(shape), side(image) / 10, mode="reflect")
        grid.append(place + field / max(float(field.std()), 1e-12) * length * side(image))
    return _sample(image, grid)


def _rotation(image: Image, degrees: float, rng: np.random.Generator) -> Image:
    """About the centre, either way; what comes in from outside is the mirror image."""
    angle = np.deg2rad(degrees) * (1 if rng.random() < 0.5 else -1)
    height, width = image.shape[1:]
    rows, columns = np.indices((height, width), dtype=np.float64)
    y, x = rows - (height - 1) / 2, columns - (width - 1) / 2
    grid = [
        np.cos(angle) * y - np.sin(angle) * x + (height - 1) / 2,
        np.sin(angle) * y + np.cos(angle) * x + (width - 1) / 2,
    ]
    return _sample(image, grid)


def _occlusion(image: Image, length: float, rng: np.random.Generator) -> Image:
    """A grey square somewhere inside the image; it grows about much the same place."""
    height, width = image.shape[1:]
    edge = max(1, round(length * side(image)))
    top, left = rng.random(2) * (height - edge, width - edge)
    covered = image.copy()
    covered[:, round(top) : round(top) + edge, round(left) : round(left) + edge] = 0.5
    return covered


def _sample(image: Image, grid: list[np.ndarray]) -> Image:
    return np.stack([ndimage.map_coordinates(channel, grid, order=1, mode="reflect") for channel in image])


KINDS = (
    Kind("elastic", "typical displacement, of the side", (0.012, 0.02, 0.03, 0.042, 0.06), _elastic),
    Kind("rotation", "degrees, either way", (6, 12, 18, 26, 36), _rotation),
    Kind("occlusion", "edge of a grey square, of the side", (0.16, 0.24, 0.32, 0.40, 0.50), _occlusion),
)
