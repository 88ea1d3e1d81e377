"""Padding, crops, mirroring and cutout of resident images against a loop over images, by both ways of picking."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from latephase.experiments.config import Data
from latephase.experiments.data import Batches, Images, StreamedBatches, StreamedImages
from latephase.experiments.data.ahead import Ahead
from latephase.experiments.data.augmentation import Draws, gathered_crops, padded, whole_crops
from latephase.experiments.data.encoded import InMemory
from latephase.experiments.errors import ExperimentError

CPU = torch.device("cpu")
EVERYTHING = [
    Data(crop_padding=3, flip=True),
    Data(crop_padding=3, padding="reflect", flip="alternate"),
    Data(crop_padding=5, padding="reflect", flip=True, cutout=4),
    Data(),
]


def random_images(n: int = 24, height: int = 7, width: int = 9) -> Images:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (n, 3, height, width), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(n) % 4, tuple("abcd"), "made up")


def one_by_one(images: Images, data: Data, index: torch.Tensor, draws: Draws, batches: Batches) -> torch.Tensor:
    """The same minibatch the slow way: image by image, with NumPy's padding and slices."""
    _, height, width = images.shape
    made = []
    for i, top, left, mirrored in zip(index, draws.top, draws.left, draws.mirrored, strict=True):
        edge = (data.crop_padding, data.crop_padding)
        mode = {"zero": "constant", "reflect": "reflect"}[data.padding]
        whole = np.pad(images.pixels[i].numpy(), ((0, 0), edge, edge), mode=mode)
        crop = whole[:, top : top + height, left : left + width]
        made.append(crop[:, :, ::-1] if mirrored else crop)
    x = (torch.from_numpy(np.stack(made)).float() - batches._mean) * batches._scale
    if data.cutout:
        for image, (row, column) in zip(x, draws.hole.tolist(), strict=True):
            begin = [max(0, centre - data.cutout // 2) for centre in (row, column)]
            end = [centre - data.cutout // 2 + data.cutout for centre in (row, column)]
            image[:, begin[0] : end[0], begin[1] : end[1]] = 0
    return x


@pytest.mark.parametrize("data", EVERYTHING, ids=str)
@pytest.mark.parametrize("crop", [whole_crops, gathered_crops])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_minibatch_is_that_of_a_loop_over_images_bit_for_bit(data: Data, crop: object, channels_last: bool) -> None:
    images = random_images()
    batches = Batches(images, 8, seed=2, data=data, device=CPU, channels_last=channels_last)
    batches._crop = crop
    for number in (1, 5, 9):
        epoch, inside = divmod(number, 3)
        index, draws = batches._draw(epoch)
        begin, end = 8 * inside, 8 * inside + 8
        x, y = batches.at(number)
        assert torch.equal(x, one_by_one(images, data, index[begin:end], draws.part(begin, end, CPU), batches))
        assert torch.equal(y, images.labels[index[begin:end]])
        assert x.is_contiguous(memory_format=batches.format)


def test_padding_is_numpys() -> None:
    pixels = random_images(2).pixels
    for pad in (0, 1, 6):
        for padding, mode in (("zero", "constant"), ("reflect", "reflect")):
            expected = np.pad(pixels.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode=mode)
            np.testing.assert_array_equal(padded(pixels, pad, padding).numpy(), expected)


def test_alternating_flips_show_every_image_both_ways_in_two_epochs() -> None:
    images = random_images()
    batches = Batches(images, 4, seed=6, data=Data(flip="alternate"), device=CPU)
    mirrored = []
    for epoch in range(3):
        index, draws = batches._draw(epoch)
        mirrored.append(draws.mirrored[index.argsort()])
    assert torch.equal(mirrored[0], ~mirrored[1])
    assert torch.equal(mirrored[0], mirrored[2])
    assert 0 < int(mirrored[0].sum()) < len(images)
    other = batches.with_seed(7)
    index, draws = other._draw(0)
    assert not torch.equal(draws.mirrored[index.argsort()], mirrored[0])


def test_alternating_flips_change_no_other_draw() -> None:
    images = random_images()
    halves, turned = (
        Batches(images, 4, seed=6, data=Data(crop_padding=2, cutout=2, flip=flip), device=CPU)
        for flip in (True, "alternate")
    )
    (order, draws), (other_order, other) = halves._draw(3), turned._draw(3)
    assert torch.equal(order, other_order)
    for name in ("top", "left", "hole"):
        assert torch.equal(getattr(draws, name), getattr(other, name))


def test_streamed_images_are_reflected_and_turned_as_resident_ones_are() -> None:
    size = 8
    pixels = random_images(12, size, size).pixels.permute(0, 2, 3, 1).numpy()
    files = []
    for i, array in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "png")
        files.append(InMemory(str(i), file.getvalue()))
    images = StreamedImages(
        tuple(files), torch.arange(12) % 4, tuple("abcd"), "made up", size=size, resize=size, threads=1
    )
    data = Data(crop_padding=3, padding="reflect", flip="alternate")
    batches = StreamedBatches(images, 4, seed=1, data=data, device=CPU)
    for number in (0, 4):
        x, _ = batches.at(number)
        index, draws = batches._index(number), batches._draws(number)
        raw = padded(torch.from_numpy(pixels).permute(0, 3, 1, 2), 3, "reflect")
        assert torch.equal(x, batches._normalise(whole_crops(raw, index, draws, size, size)))
    turned = torch.zeros(2, len(images), dtype=torch.bool)
    for number in range(6):
        turned[number // 3, batches._index(number)] = batches._draws(number).mirrored
    assert torch.equal(turned[0], ~turned[1])


def test_images_too_small_to_be_reflected_are_refused() -> None:
    with pytest.raises(ExperimentError, match=r"crop_padding = 7 .* images of 7x9 pixels .* at most 6"):
        Batches(random_images(), 4, seed=0, data=Data(crop_padding=7, padding="reflect"), device=CPU)


def test_without_streams_everything_is_made_when_it_is_wanted() -> None:
    asked: list[int] = []

    def make(key: int) -> tuple[torch.Tensor]:
        asked.append(key)
        return (torch.tensor(key),)

    ahead = Ahead[int](CPU)
    assert [int(ahead.take(make, key, key + 1)[0]) for key in (3, 4, 9)] == [3, 4, 9]
    assert asked == [3, 4, 9]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_minibatches_made_ahead_are_those_of_a_cpu() -> None:
    images, data = random_images(40), EVERYTHING[2]
    there = Batches(images, 4, seed=2, data=data, device=torch.device("cuda"), channels_last=True)
    here = Batches(images, 4, seed=2, data=data, device=CPU)
    there._block = here._block = 3
    for number in (0, 1, 2, 3, 9, 10, 11, 29, 4):
        for ours, theirs in zip(there.at(number), here.at(number), strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=1e-6)
