"""Out-of-distribution sets: noise, files and folders, a few images in memory at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from latephase.evaluation import NoiseImages
from latephase.experiments.data.encoded import SUFFIXES, InMemory, OnDisk, centre_crop, decode
from latephase.experiments.errors import ExperimentError

NOISES = ("gaussian", "uniform")
# Name: torchvision's class and the arguments that ask for its test images.
DOWNLOADS: dict[str, tuple[str, dict[str, Any]]] = {
    "svhn": ("SVHN", {"split": "test"}),
    "cifar10": ("CIFAR10", {"train": False}),
    "cifar100": ("CIFAR100", {"train": False}),
}
# Decoded images of a set are kept for the next run of a comparison if they take less than this.
_KEPT_BYTES = 64 * 2**20


class Pictures(Protocol):
    """Images without labels, in some order, that can be gone through again."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Image.Image]: ...


@dataclass(frozen=True)
class OodSet:
    """An out-of-distribution set, made to fit a model.

    Attributes:
        name: What tables call it.
        shape: Of the images that the model takes, (channels, height, width).
        changes: What had to be done to the images for that, in words; empty if nothing.
        pictures: The images; None for noise.
        noise: The kind of noise.
        count: How many images.
        kept: The decoded images, for the next run, if all of them take little memory.
    """

    name: str
    shape: tuple[int, int, int]
    changes: str
    pictures: Pictures | None
    noise: str
    count: int
    kept: list[Tensor] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return self.count

    def chunks(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images, some at a time; no more of them are in memory.

        Args:
            n: Images at a time.

        Yields:
            Pixels, uint8 (n, channels, height, width), and labels that mean nothing, (n,).

        Raises:
            ExperimentError: If an image cannot be read.
        """
        if self.pictures is None:
            for pixels in NoiseImages(self.noise, self.count, self.shape, batch_size=n):
                yield pixels, torch.zeros(len(pixels), dtype=torch.int64)
            return
        if not self.kept and self.count * int(np.prod(self.shape)) <= _KEPT_BYTES:
            self.kept.extend(self._stacks(1000))
        stacks = (part for stack in self.kept for part in stack.split(n)) if self.kept else self._stacks(n)
        for stack in stacks:
            yield stack, torch.zeros(len(stack), dtype=torch.int64)

    def _stacks(self, n: int) -> Iterator[Tensor]:
        """The images of a file or folder, made to fit, n at a time."""
        assert self.pictures is not None
        ready: list[Tensor] = []
        for picture in itertools.islice(self.pictures, self.count):
            ready.append(_fitted(picture, self.shape))
            if len(ready) == n:
                yield torch.stack(ready)
                ready = []
        if ready:
            yield torch.stack(ready)


def open_set(text: str, shape: tuple[int, int, int], noise_count: int, most: int | None = None) -> OodSet:
    """Find a set by its name or path.

    Args:
        text: `gaussian`, `uniform`, `svhn`, `cifar10` or `cifar100` (with `:FOLDER` for where torchvision's files are,
            else `data`), a parquet file, or a folder of images with or without folders in it.
        shape: What the model takes, (channels, height, width).
        noise_count: Images of noise.
        most: The most images; None takes all.

    Returns:
        The set.

    Raises:
        ExperimentError: If there is no such set, or it holds fewer than two images.
    """
    if text in NOISES:
        return OodSet(f"{text} noise", shape, "", None, text, min(noise_count, most or noise_count))
    name, _, folder = text.partition(":")
    pictures: Pictures
    if name in DOWNLOADS:
        pictures = _download(name, folder or "data")
    elif Path(text).is_dir():
        name, pictures = Path(text).name, _Files(_images_in(Path(text)))
    elif Path(text).is_file() and text.endswith(".parquet"):
        name, pictures = Path(text).stem, _Parquet(text)
    else:
        known = ", ".join((*NOISES, *DOWNLOADS))
        raise ExperimentError(f"--ood {text}: no such file or folder, nor one of {known}")
    if len(pictures) < 2:
        raise ExperimentError(f"--ood {text} holds {len(pictures)} images; a set needs two at least")
    first = next(iter(pictures))
    return OodSet(name, shape, _changes(first, shape), pictures, "", min(len(pictures), most or len(pictures)))


def _changes(picture: Image.Image, shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    said = []
    if picture.size != (width, height):
        said.append(f"resized from {picture.width}x{picture.height} to {width}x{height}")
    if channels == 1 and picture.mode != "L":
        said.append("made grey")
    return ", ".join(said)


def _fitted(picture: Image.Image, shape: tuple[int, int, int]) -> Tensor:
    channels, height, _ = shape
    array = np.asarray(centre_crop(picture.convert("L" if channels == 1 else "RGB"), height))
    return torch.from_numpy(array.copy()).view(height, height, channels).permute(2, 0, 1)


def _images_in(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise ExperimentError(
            f"--ood {folder} holds no images; it takes files such as .png and .jpeg, in folders or not"
        )
    return files


@dataclass(frozen=True)
class _Files:
    files: list[Path]

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Image.Image]:
        return (decode(OnDisk(str(file))) for file in self.files)


class _Parquet:
    """Images of a file in the Hugging Face layout, read a few rows at a time."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with pq.ParquetFile(path) as file:
                self.count = file.metadata.num_rows
                schema = file.schema_arrow
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise ExperimentError(f"cannot read {path} as parquet; it may be truncated ({reason})") from error
        columns = [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
        if not columns:
            raise ExperimentError(f"{path} has no column of images; its columns are {', '.join(schema.names)}")
        self.column = columns[0]

    def __len__(self) -> int:
        return int(self.count)

    def __iter__(self) -> Iterator[Image.Image]:
        with pq.ParquetFile(self.path) as file:
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=[self.column]):
                for content in batch.column(0).field("bytes").to_pylist():
                    yield decode(self._encoded(content, row))
                    row += 1

    def _encoded(self, content: bytes | None, row: int) -> InMemory:
        if content is None:
            raise ExperimentError(f"{self.path} holds no bytes for the image in row {row}")
        return InMemory(f"row {row} of {self.path}", content)


class _Arrays:
    """Images of a torchvision data set, which keeps them in memory."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Image.Image]:
        return (Image.fromarray(image) for image in self.images)


def _download(name: str, folder: str) -> _Arrays:
    from torchvision import datasets

    kind, which = DOWNLOADS[name]
    try:
        found = getattr(datasets, kind)(folder, download=True, **which)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ExperimentError(f"cannot read {name} in {folder}, nor download it to there ({reason})") from error
    # SVHN keeps channels first.
    images = found.data.transpose(0, 2, 3, 1) if kind == "SVHN" else found.data
    return _Arrays(images)
