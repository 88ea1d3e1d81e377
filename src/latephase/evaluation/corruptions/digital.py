"""Corruptions of storage and transmission."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image as Pillow

from latephase.evaluation.corruptions.kind import Image, Kind


def _pixelate(image: Image, kept: float, _: np.random.Generator) -> Image:
    """Fewer pixels: the mean of each, shown as a square."""
    height, width = image.shape[1:]
    small = max(1, round(kept * width)), max(1, round(kept * height))
    return _from_pillow(
        _to_pillow(image).resize(small, Pillow.Resampling.BOX).resize((width, height), Pillow.Resampling.NEAREST)
    )


def _jpeg(image: Image, quality: float, _: np.random.Generator) -> Image:
    file = io.BytesIO()
    _to_pillow(image).save(file, format="JPEG", quality=int(quality), subsampling="4:2:0")
    with Pillow.open(file) as stored:
        return _from_pillow(stored)


def _posterize(image: Image, levels: float, _: np.random.Generator) -> Image:
    return np.rint(image * np.float32(levels - 1)) / np.float32(levels - 1)


def _to_pillow(image: Image) -> Pillow.Image:
    return Pillow.fromarray(np.rint(image * 255).astype(np.uint8).transpose(1, 2, 0))


def _from_pillow(image: Pillow.Image) -> Image:
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)


KINDS = (
    Kind("pixelate", "kept of the resolution", (0.80, 0.65, 0.50, 0.40, 0.30), _pixelate),
    Kind("jpeg", "quality of Pillow's encoder, 4:2:0", (60, 35, 20, 12, 7), _jpeg),
    Kind("posterize", "levels of each channel", (12, 8, 5, 4, 3), _posterize),
)
