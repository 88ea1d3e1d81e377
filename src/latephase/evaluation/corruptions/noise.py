"""Corruptions that add noise to each value on its own."""

from __future__ import annotations

import numpy as np

from latephase.evaluation.corruptions.kind import Image, Kind


def _gaussian(image: Image, deviation: float, rng: np.random.Generator) -> Image:
    return image + deviation * rng.standard_normal(image.shape, dtype=np.float32)


def _shot(image: Image, photons: float, rng: np.random.Generator) -> Image:
    return (rng.poisson(image * photons) / photons).astype(np.float32)


def _impulse(image: Image, share: float, rng: np.random.Generator) -> Image:
    draw = rng.random(image.shape, dtype=np.float32)
    return np.where(draw < share / 2, np.float32(0), np.where(draw > 1 - share / 2, np.float32(1), image))


def _speckle(image: Image, deviation: float, rng: np.random.Generator) -> Image:
    return image * (1 + deviation * rng.standard_normal(image.shape, dtype=np.float32))


KINDS = (
    Kind("gaussian_noise", "normal noise; standard deviation", (0.03, 0.06, 0.09, 0.13, 0.18), _gaussian),
    Kind("shot_noise", "Poisson noise; photons at full brightness", (400, 160, 80, 45, 25), _shot),
    Kind("impulse_noise", "values set to 0 or 1; their share", (0.01, 0.03, 0.06, 0.10, 0.16), _impulse),
    Kind("speckle_noise", "noise times the value; standard deviation", (0.06, 0.12, 0.20, 0.30, 0.42), _speckle),
)
