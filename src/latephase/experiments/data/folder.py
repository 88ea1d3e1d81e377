"""Folders of images, one folder for each class: on the disk or inside an archive, resident or streamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from latephase.experiments.config import Data
from latephase.experiments.data.archive import archive_in, list_archive
from latephase.experiments.data.encoded import SUFFIXES, Encoded, OnDisk, centre_crop, decode, size_of
from latephase.experiments.data.images import Images, stack_images
from latephase.experiments.data.streamed import StreamedImages
from latephase.experiments.errors import ExperimentError

# Pixels that may be resident unless `data.resident` says otherwise: 7,000 images of 224 pixels, 87,000 of 64.
_RESIDENT_BYTES = 2**30

Labelled = list[tuple[str, Encoded]]


def load(data: Data) -> tuple[Images, Images | None] | tuple[StreamedImages, StreamedImages | None]:
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
    parts = {path: list_folder(path) for path in (data.train, data.test) if path is not None}
    train, *rest = ({label for label, _ in part} for part in parts.values())
    if rest and rest[0] != train:
        missing = sorted(train ^ rest[0])
        raise ExperimentError(
            f"{data.train} and {data.test} hold different classes: {', '.join(missing[:5])} in one of them only"
        )
    if _is_resident(data, [image for part in parts.values() for _, image in part]):
        images = {path: _resident(part, path, data.image_size, data.resize) for path, part in parts.items()}
        return images[data.train], None if data.test is None else images[data.test]
    if data.image_size is None:
        raise ExperimentError("data.resident = false needs data.image_size, the side of the images in pixels")
    streams = {path: _streamed(part, path, data) for path, part in parts.items()}
    return streams[data.train], None if data.test is None else streams[data.test]


def read(path: str, size: int | None = None, resize: int | None = None) -> Images:
    """Read a folder whose sub-folders are the classes, in alphabetical order.

    Every image is converted to RGB and, with `size`, resized and centre-cropped to a square.

    Args:
        path: The folder, which may be inside an archive.
        size: Side in pixels; None keeps the images as they are, which must then be of one size.
        resize: Pixels of the shorter side before the crop; None takes `size`.

    Returns:
        The images.

    Raises:
        ExperimentError: If the folder is missing or holds no images, or an image cannot be read.
    """
    return _resident(list_folder(path), path, size, resize)


def list_folder(path: str) -> Labelled:
    """The images of a folder, none of them read.

    Args:
        path: The folder, which may be inside an archive.

    Returns:
        Class and image, sorted by their names.

    Raises:
        ExperimentError: If there is no such folder, or no image in it.
    """
    if found := archive_in(path):
        return list_archive(*found)
    root = Path(path)
    if not root.is_dir():
        raise ExperimentError(f"there is no data folder {path}")
    files: Labelled = [
        (name, OnDisk(str(file)))
        for name in sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in SUFFIXES and file.is_file()  # and no pipe or device
    ]
    if not files:
        raise ExperimentError(f"{path} holds no images; it must hold one folder for each class")
    return files


def _is_resident(data: Data, files: list[Encoded]) -> bool:
    if data.resident != "auto" or data.image_size is None:
        return data.resident is not False
    size = data.image_size
    if len(files) * 3 * size**2 > _RESIDENT_BYTES:
        return False
    # A resized crop is to be taken from the whole image, which is resident only if it has the images' size.
    return not data.resized_crop or all(size_of(file) == (size, size) for file in files)


def _resident(part: Labelled, path: str, size: int | None, resize: int | None) -> Images:
    arrays = []
    for _, file in part:
        image = decode(file)
        arrays.append(np.asarray(image if size is None else centre_crop(image, size, resize)))
    labels, classes = _labels(part)
    return Images(stack_images(arrays, path), labels, classes, path)


def _streamed(part: Labelled, path: str, data: Data) -> StreamedImages:
    assert data.image_size is not None
    labels, classes = _labels(part)
    size, resize = data.image_size, data.resize or data.image_size
    return StreamedImages(tuple(file for _, file in part), labels, classes, path, size, resize, data.decode_threads)


def _labels(part: Labelled) -> tuple[torch.Tensor, tuple[str, ...]]:
    classes = sorted({label for label, _ in part})
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number[label] for label, _ in part]), tuple(classes)
