"""Encoded images, wherever they lie, and how they are decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from latephase.experiments.errors import ExperimentError

# An image of more pixels is refused by its header; Pillow itself only warns, up to twice as many.
_MOST_PIXELS = 2**26
BILINEAR = Image.Resampling.BILINEAR
#: What the name of an image file ends with.
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Encoded(Protocol):
    """One encoded image."""

    @property
    def name(self) -> str:
        """What error messages call it."""

    def read(self) -> bytes:
        """Its bytes."""


@dataclass(frozen=True, slots=True)
class OnDisk:
    """An image in a file of its own.

    Attributes:
        name: Path of the file.
    """

    name: str

    def read(self) -> bytes:
        """Its bytes."""
        return Path(self.name).read_bytes()


@dataclass(frozen=True, slots=True)
class InArchive:
    """An image inside an archive that is not compressed.

    Attributes:
        archive: Path of the archive.
        member: Its name in there.
        offset: Where its bytes begin.
        size: How many there are.
    """

    archive: str
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        """What error messages call it."""
        return f"{self.archive}/{self.member}"

    def read(self) -> bytes:
        """Its bytes."""
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True, slots=True)
class InMemory:
    """An image out of a compressed archive.

    Attributes:
        name: What error messages call it.
        content: Its bytes.
    """

    name: str
    content: bytes

    def read(self) -> bytes:
        """Its bytes."""
        return self.content


def decode(image: Encoded) -> Image.Image:
    """Decode an image of any format.

    Args:
        image: The encoded image.

    Returns:
        The image in RGB.

    Raises:
        ExperimentError: If it cannot be read.
    """
    with _opened(image) as opened:
        return opened.convert("RGB")


def size_of(image: Encoded) -> tuple[int, int]:
    """Width and height of an image, from its header.

    Args:
        image: The encoded image.

    Returns:
        Pixels.

    Raises:
        ExperimentError: If it cannot be read.
    """
    with _opened(image) as opened:
        return opened.size


def centre_crop(image: Image.Image, size: int, resize: int | None = None) -> Image.Image:
    """Resize an image and cut out its middle.

    Args:
        image: The image.
        size: Side of the result in pixels.
        resize: Pixels of the shorter side before the crop; None takes `size`.

    Returns:
        The square.
    """
    shorter = resize or size
    if min(image.size) != shorter:
        scale = shorter / min(image.size)
        width, height = (max(shorter, round(side * scale)) for side in image.size)
        image = image.resize((width, height), BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image if image.size == (size, size) else image.crop((left, top, left + size, top + size))


@contextmanager
def _opened(image: Encoded) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(image.read()))
        with opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise ValueError(f"its header claims {opened.width} x {opened.height} pixels, over {_MOST_PIXELS:,}")
            yield opened
    except Exception as error:  # of damage the decoders complain in many ways, SyntaxError and struct.error among them
        raise ExperimentError(f"cannot read the image {image.name}: {error}") from error
