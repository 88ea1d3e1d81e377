"""Corruptions that average over neighbours."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage

from latephase.evaluation.corruptions.kind import Image, Kind, side

_FINE = 5


def _gaussian(image: Image, length: float, _: np.random.Generator) -> Image:
    deviation = length * side(image)
    return ndimage.gaussian_filter(image, (0, deviation, deviation), mode="reflect")


def _defocus(image: Image, length: float, _: np.random.Generator) -> Image:
    """Mean over a disc, which is what a lens out of focus does to a point."""
    radius = length * side(image)
    reach = int(np.ceil(radius))
    # How much of each pixel the disc covers, counted on a finer grid.
    fine = (np.arange((2 * reach + 1) * _FINE) + 0.5) / _FINE - reach - 0.5
    inside = np.hypot(fine[:, None], fine[None]) <= radius
    disc = inside.reshape(2 * reach + 1, _FINE, 2 * reach + 1, _FINE).sum(axis=(1, 3))
    return _filter(image, disc)


def _motion(image: Image, length: float, rng: np.random.Generator) -> Image:
    """Mean over a straight line through the pixel, at a random angle."""
    pixels = length * side(image)
    reach = int(np.ceil(pixels / 2)) + 1
    angle = rng.uniform(0, np.pi)
    along = np.linspace(-pixels / 2, pixels / 2, 8 * (2 * reach + 1))
    path = np.zeros((2 * reach + 1, 2 * reach + 1))
    # Each point of the line is shared out to the four pixels around it.
    y, x = reach + along * np.sin(angle), reach + along * np.cos(angle)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = np.abs(1 - down - (y - top)) * np.abs(1 - right - (x - left))
        np.add.at(path, (top + down, left + right), share)
    return _filter(image, path)


def _zoom(image: Image, largest: float, _: np.random.Generator) -> Image:
    """Mean over the image and magnifications of it up to the largest, about the centre."""
    height, width = image.shape[1:]
    factors = np.linspace(1, largest, 10)
    zoomed = [_magnify(height, f) @ image @ _magnify(width, f).T for f in factors]
    return np.stack(zoomed).mean(axis=0)


@cache
def _magnify(length: int, factor: float) -> np.ndarray:
    """Linear interpolation along one axis as a matrix, (length, length)."""
    centre = (length - 1) / 2
    position = (np.arange(length) - centre) / factor + centre
    low = np.floor(position).astype(int).clip(0, max(length - 2, 0))
    share = position - low
    matrix = np.zeros((length, length), dtype=np.float32)
    matrix[np.arange(length), low] = 1 - share
    matrix[np.arange(length), np.minimum(low + 1, length - 1)] += share
    return matrix


def _filter(image: Image, weights: np.ndarray) -> Image:
    share = (weights / weights.sum()).astype(np.float32)
    return ndimage.convolve(image, share[None], mode="reflect")


KINDS = (
    Kind("gaussian_blur", "standard deviation, of the side", (0.014, 0.02, 0.027, 0.036, 0.05), _gaussian),
    Kind("defocus_blur", "radius of the disc, of the side", (0.024, 0.034, 0.045, 0.06, 0.08), _defocus),
    Kind("motion_blur", "length of the path, of the side", (0.06, 0.10, 0.14, 0.19, 0.25), _motion),
    Kind("zoom_blur", "largest magnification", (1.06, 1.12, 1.18, 1.25, 1.33), _zoom),
)
