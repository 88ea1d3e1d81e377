"""Random crops, flips and cutout: what is drawn for an image, and what is done to it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from latephase.experiments.config import Data

# Random parts of an image as torchvision's RandomResizedCrop draws them, with its defaults.
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_ATTEMPTS = 10


class Draws(NamedTuple):
    """What is drawn for N images; what is switched off takes no draws and has no columns.

    Attributes:
        top: Row of the crop in the padded image, (N,).
        left: Column of the crop in the padded image, (N,).
        mirrored: Whether the image is mirrored, (N,).
        attempts: Uniform numbers for area and aspect of a resized crop, (N, 10, 2) or (N, 0, 2).
        place: Uniform numbers for its place, (N, 2) or (N, 0).
        hole: Row and column of the centre of the cut-out square, (N, 2) or (N, 0).
    """

    top: Tensor
    left: Tensor
    mirrored: Tensor
    attempts: Tensor
    place: Tensor
    hole: Tensor

    def part(self, begin: int, end: int, device: torch.device) -> Draws:
        """Those of some of the images, on a device."""
        return Draws(*(draw[begin:end].to(device) for draw in self))


def draw(n: int, size: int, data: Data, generator: Generator) -> Draws:
    """Draw the augmentation of images.

    Args:
        n: Number of images.
        size: Side of the images in pixels.
        data: Which augmentation is asked for.
        generator: What draws; with the same augmentation it always advances by the same amount.

    Returns:
        The draws, on the CPU.
    """
    top, left = torch.randint(2 * data.crop_padding + 1, (2, n), generator=generator)
    mirrored = torch.rand(n, generator=generator) < (0.5 if data.flip else 0.0)
    attempts, place, hole = torch.empty(n, 0, 2), torch.empty(n, 0), torch.empty(n, 0, dtype=torch.int64)
    if data.resized_crop:
        attempts = torch.rand(n, _ATTEMPTS, 2, generator=generator)
        place = torch.rand(n, 2, generator=generator)
    if data.cutout:
        hole = torch.randint(size, (n, 2), generator=generator)
    return Draws(top, left, mirrored, attempts, place, hole)


def padded(pixels: Tensor, pad: int, padding: str) -> Tensor:
    """Images with what a random crop may show around them.

    Args:
        pixels: uint8, (N, channels, height, width).
        pad: Pixels on each side.
        padding: `zero` or `reflect`, which leaves out the edge itself and needs images larger than `pad`.

    Returns:
        uint8, (N, channels, height + 2 pad, width + 2 pad).
    """
    if padding == "zero":
        return torch.nn.functional.pad(pixels, (pad, pad, pad, pad))
    # PyTorch reflects no bytes.
    for dim in (2, 3):
        last = pixels.shape[dim] - 1
        position = torch.arange(-pad, last + pad + 1, device=pixels.device).abs()
        pixels = pixels.index_select(dim, last - (last - position).abs())
    return pixels


def whole_crops(pixels: Tensor, index: Tensor, draws: Draws, height: int, width: int) -> Tensor:
    """Random crops, picked whole from a view of every crop there is, then mirrored: several times faster on a CPU.

    Args:
        pixels: All images, padded, uint8 (images, channels, padded height, padded width).
        index: Which of them, (N,).
        draws: Where they are cropped and which are mirrored.
        height: Of a crop, in pixels.
        width: Of a crop, in pixels.

    Returns:
        uint8, (N, channels, height, width).
    """
    every = pixels.unfold(2, height, 1).unfold(3, width, 1)
    x = every[index, :, draws.top, draws.left]
    return torch.where(draws.mirrored[:, None, None, None], x.flip(3), x)


def gathered_crops(pixels: Tensor, index: Tensor, draws: Draws, height: int, width: int) -> Tensor:
    """The same as `whole_crops` pixel by pixel, mirrored on the way: one gather, for devices that launch kernels.

    Args:
        pixels: All images, padded, uint8 (images, channels, padded height, padded width); channels-last is faster.
        index: Which of them, (N,).
        draws: Where they are cropped and which are mirrored.
        height: Of a crop, in pixels.
        width: Of a crop, in pixels.

    Returns:
        uint8, (N, channels, height, width), channels-last.
    """
    rows = draws.top[:, None] + torch.arange(height, device=pixels.device)
    columns = torch.arange(width, device=pixels.device)
    columns = draws.left[:, None] + torch.where(draws.mirrored[:, None], columns.flip(0), columns)
    x = pixels.permute(0, 2, 3, 1)[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return x.permute(0, 3, 1, 2)


def crop_boxes(height: int, width: int, attempts: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The part of each image that a resized crop shows.

    Area and the logarithm of the aspect are uniform; the first attempt that fits into the image counts. If none does,
    it is the centre, cut to the nearest aspect that is allowed.

    Args:
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        attempts: Uniform numbers, (N, attempts, 2).
        place: Uniform numbers, (N, 2).

    Returns:
        Top, left, height and width of the parts in pixels, int64, (N,) each.
    """
    area = height * width * (_AREA[0] + attempts[..., 0] * (_AREA[1] - _AREA[0]))
    low, high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    aspect = torch.exp(low + attempts[..., 1] * (high - low))
    heights, widths = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = fits.int().argmax(dim=1, keepdim=True)
    h, w = (sides.gather(1, first).squeeze(1).long() for sides in (heights, widths))
    clamped = min(max(width / height, _ASPECT[0]), _ASPECT[1])
    none = ~fits.any(dim=1)
    h = torch.where(none, min(height, round(width / clamped)), h)
    w = torch.where(none, min(width, round(height * clamped)), w)
    top = torch.where(none, (height - h) // 2, (place[:, 0] * (height - h + 1)).long())
    left = torch.where(none, (width - w) // 2, (place[:, 1] * (width - w + 1)).long())
    return top, left, h, w


def resized_crops(pixels: Tensor, boxes: tuple[Tensor, Tensor, Tensor, Tensor], mirrored: Tensor) -> Tensor:
    """Enlarge a part of each image to the image's own size, bilinearly, without looking beyond the part.

    Args:
        pixels: (N, channels, height, width).
        boxes: Top, left, height and width of the parts, (N,) each.
        mirrored: Which results are mirrored, (N,).

    Returns:
        float32, (N, channels, height, width).
    """
    top, left, h, w = boxes
    x = pixels.to(torch.float32)
    for dim, begin, length in ((2, top, h), (3, left, w)):
        size = x.shape[dim]
        position = (torch.arange(size, device=x.device) + 0.5) * length[:, None] / size - 0.5
        position = position.clamp(min=0).minimum(length[:, None] - 1.0)
        if dim == 3:
            position = torch.where(mirrored[:, None], position.flip(1), position)
        low = position.floor().long()
        high = (low + 1).minimum(length[:, None] - 1)
        shape = (len(x), 1, size, 1) if dim == 2 else (len(x), 1, 1, size)
        share = (position - low).view(shape)
        near, far = ((i + begin[:, None]).view(shape).expand_as(x) for i in (low, high))
        x = torch.lerp(x.gather(dim, near), x.gather(dim, far), share)
    return x


def cut_out(x: Tensor, hole: Tensor, side: int) -> None:
    """Set a square of each image to zero, the mean colour of normalised images (DeVries and Taylor, 2017).

    Args:
        x: Normalised images, (N, channels, height, width); changed.
        hole: Row and column of the squares' centres, (N, 2); a square may hang over the edge.
        side: Side of the squares in pixels.
    """
    inside = []
    for size, centre in zip(x.shape[-2:], hole.unbind(1), strict=True):
        offset = torch.arange(size, device=x.device) - (centre[:, None] - side // 2)
        inside.append((offset >= 0) & (offset < side))
    rows, columns = inside
    x.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
