"""Data: where images come from, how they are split, and the minibatches made of them."""

from __future__ import annotations

import importlib

import torch

from latephase.experiments.config import Data
from latephase.experiments.data.batches import Batches
from latephase.experiments.data.images import Images
from latephase.experiments.data.minibatches import Minibatches, minibatches_per_epoch
from latephase.experiments.data.split import Split, split_images
from latephase.experiments.data.stream_batches import StreamedBatches
from latephase.experiments.data.streamed import StreamedImages
from latephase.experiments.errors import unknown

__all__ = [
    "SOURCES",
    "AnyImages",
    "Batches",
    "Images",
    "Minibatches",
    "Split",
    "StreamedBatches",
    "StreamedImages",
    "hand_over",
    "load_images",
    "load_split",
    "make_batches",
    "minibatches_per_epoch",
    "source_of",
]

AnyImages = Images | StreamedImages

#: Every source by its name, and the function that reads it; its module is imported only when it is asked for.
SOURCES = {
    "digits": "digits:load",
    "parquet": "parquet:load",
    "folder": "folder:load",
    "cifar10": "cifar:load_cifar10",
    "cifar100": "cifar:load_cifar100",
}


# Sources that this process has read, so that the seeds and methods of a study decode the files once.
_read: dict[Data, tuple[AnyImages, AnyImages | None]] = {}


def load_images(data: Data) -> tuple[AnyImages, AnyImages | None]:
    """Read a source as it is, before anything is split.

    Args:
        data: Source and files.

    Returns:
        The images to train on, and the test images if the source has any of its own.

    Raises:
        ExperimentError: If the source is unknown, or its files are not what they should be.
    """
    source = source_of(data)
    if source not in _read:
        if data.name not in SOURCES:
            raise unknown("data set", data.name, SOURCES)
        module, function = SOURCES[data.name].split(":")
        read = getattr(importlib.import_module(f"latephase.experiments.data.{module}"), function)
        _read[source] = read(data)
    return _read[source]


def hand_over(data: Data, images: tuple[AnyImages, AnyImages | None]) -> None:
    """Give this process the images of a source, so that it need not read them itself.

    Args:
        data: Source and files.
        images: What `load_images` returned in another process.
    """
    _read[source_of(data)] = images


def load_split(data: Data, seed: int) -> Split:
    """Load the images of a run.

    Args:
        data: Source, sizes and noise.
        seed: The run's seed, which draws the split unless `data.split_seed` does.

    Returns:
        Training, validation and test images.

    Raises:
        ExperimentError: If the source is unknown, or its files are not what they should be.
    """
    images, test = load_images(data)
    return split_images(images, test, data, seed if data.split_seed is None else data.split_seed)


def make_batches(
    images: AnyImages, batch_size: int, seed: int, data: Data, device: torch.device, *, channels_last: bool = False
) -> Minibatches:
    """The training minibatches of a seed, from memory or decoded on the way.

    Args:
        images: The training images.
        batch_size: Images in a minibatch.
        seed: Seed of order and augmentation.
        data: The augmentation.
        device: Where the minibatches are wanted.
        channels_last: Memory format of the minibatches.

    Returns:
        The minibatches; number i is a function of the seed and i alone.

    Raises:
        ExperimentError: If there are fewer images than one minibatch takes.
    """
    if isinstance(images, StreamedImages):
        return StreamedBatches(images, batch_size, seed, data, device, channels_last=channels_last)
    return Batches(images, batch_size, seed, data, device, channels_last=channels_last)


def source_of(data: Data) -> Data:
    """What of a recipe's data says where the images come from.

    Args:
        data: Source, files, split and augmentation.

    Returns:
        The same for all settings that read the same images.
    """
    return Data(
        name=data.name,
        train=data.train,
        test=data.test,
        image_size=data.image_size,
        resize=data.resize,
        resident=data.resident,
        resized_crop=data.resized_crop,
        decode_threads=data.decode_threads,
    )
