"""Corruptions of brightness, contrast and colour."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from latephase.evaluation.corruptions.kind import Image, Kind, side

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def _brightness(image: Image, more: float, _: np.random.Generator) -> Image:
    return image + np.float32(more)


def _contrast(image: Image, kept: float, _: np.random.Generator) -> Image:
    mean = image.mean(axis=(1, 2), keepdims=True)
    return mean + np.float32(kept) * (image - mean)


def _saturation(image: Image, kept: float, _: np.random.Generator) -> Image:
    grey = np.tensordot(_LUMA, image, axes=1)[None]
    return grey + np.float32(kept) * (image - grey)


def _fog(image: Image, density: float, rng: np.random.Generator) -> Image:
    """A bright veil whose density varies over the image, smooth on scales from a quarter of the side to a pixel."""
    shape = image.shape[1:]
    veil = np.zeros(shape)
    for halvings in range(4):
        layer = ndimage.gaussian_filter(rng.standard_normal(shape), side(image) / 4 / 2**halvings, mode="wrap")
        veil += layer / max(float(layer.std()), 1e-12) / 2**halvings
    low, high = veil.min(), veil.max()
    share = density * (0.5 + 0.5 * (veil - low) / max(float(high - low), 1e-12)).astype(np.float32)
    return image * (1 - share) + np.float32(0.85) * share


KINDS = (
    Kind("brightness", "added to every value", (0.08, 0.15, 0.22, 0.30, 0.40), _brightness),
    Kind("contrast", "kept of the distance from the channel's mean", (0.70, 0.52, 0.38, 0.27, 0.18), _contrast),
    Kind("saturation", "kept of the distance from grey", (0.65, 0.45, 0.28, 0.12, 0.0), _saturation),
    Kind("fog", "density of the veil where it is thickest", (0.25, 0.40, 0.55, 0.68, 0.80), _fog),
)
