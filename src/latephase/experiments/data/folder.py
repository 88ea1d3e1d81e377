"""Folders of images, one folder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from latephase.experiments.config import Data
from latephase.experiments.data.images import Images, stack_images
from latephase.experiments.errors import ExperimentError

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def load(data: Data) -> tuple[Images, Images | None]:
    """Read one folder of training images and one of test images.

    Args:
        data: `train` and, if there is one, `test` are the folders; `image_size` is the side of every image.

    Returns:
        The images of the two folders; None for a test folder that was not named.

    Raises:
        ExperimentError: If a folder is missing or empty, an image cannot be read, or the classes of the two differ.
    """
    if data.train is None:
        raise ExperimentError("data.name = folder needs data.train, the folder of training images")
    train = read(data.train, data.image_size)
    test = None if data.test is None else read(data.test, data.image_size)
    if test is not None and test.classes != train.classes:
        missing = sorted(set(train.classes) ^ set(test.classes))
        raise ExperimentError(
            f"{data.train} and {data.test} hold different classes: {', '.join(missing[:5])} in one of them only"
        )
    return train, test


def read(path: str, size: int | None = None) -> Images:
    """Read a folder whose sub-folders are the classes, in alphabetical order.

    Every image is converted to RGB and, with `size`, resized and centre-cropped to a square.

    Args:
        path: The folder.
        size: Side in pixels; None keeps the images as they are, which must then be of one size.

    Returns:
        The images.

    Raises:
        ExperimentError: If the folder is missing or holds no images, or an image cannot be read.
    """
    root = Path(path)
    if not root.is_dir():
        raise ExperimentError(f"there is no data folder {path}")
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise ExperimentError(f"{path} holds no images; it must hold one folder for each class")
    pixels = stack_images([_decode(file, size) for file, _ in files], path)
    return Images(pixels, torch.tensor([label for _, label in files]), tuple(classes), path)


def _decode(file: Path, size: int | None) -> np.ndarray:
    try:
        with Image.open(file) as image:
            rgb = image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ExperimentError(f"cannot read the image {file}: {error}") from error
    return np.asarray(rgb if size is None else ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC))
