"""Random crops and cutout, against the slow and obvious way."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import RandomResizedCrop

from latephase.experiments.config import Data
from latephase.experiments.data import Batches, Images
from latephase.experiments.data.augmentation import crop_boxes, cut_out, draw, resized_crops

CPU = torch.device("cpu")


def random_images(n: int = 24, size: int = 12) -> Images:
    pixels = torch.randint(256, (n, 3, size, size), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
    return Images(pixels, torch.arange(n) % 4, tuple("abcd"), "made up")


def boxes_of(height: int, width: int, n: int = 30_000) -> list[torch.Tensor]:
    draws = draw(n, min(height, width), Data(resized_crop=True), torch.Generator().manual_seed(3))
    return list(crop_boxes(height, width, draws.attempts, draws.place))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (300, 400), (400, 300)])
def test_resized_crops_are_drawn_as_torchvision_draws_them(height: int, width: int) -> None:
    top, left, h, w = boxes_of(height, width)
    assert int(top.min()) >= 0
    assert int(left.min()) >= 0
    assert int((top + h).max()) <= height
    assert int((left + w).max()) <= width
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(6000)]
    for ours, column in zip((top, left, h, w), zip(*theirs, strict=True), strict=True):
        expected = torch.tensor(column, dtype=torch.float64)
        error = (expected.var() * 2 / len(expected)).sqrt()
        assert abs(float(ours.double().mean() - expected.mean())) < 4 * float(error)
        assert float(ours.double().std() / expected.std()) == pytest.approx(1, abs=0.06)


def test_an_image_into_which_no_attempt_fits_gives_its_centre() -> None:
    top, left, h, w = boxes_of(10, 1000, n=4)
    # Aspect 100 is far beyond 4/3: the height is kept and the width cut.
    fallback = (w == 13) & (h == 10)
    assert bool(fallback.any())
    assert left[fallback].unique().tolist() == [493]
    assert top[fallback].unique().tolist() == [0]


def test_a_resized_crop_is_the_crop_interpolated_bilinearly() -> None:
    pixels = random_images(6).pixels
    boxes = tuple(
        torch.tensor(v) for v in ([0, 3, 5, 0, 11, 2], [0, 2, 6, 0, 0, 11], [12, 5, 7, 12, 1, 9], [12, 8, 6, 4, 12, 1])
    )
    mirrored = torch.tensor([False, True, False, True, False, True])
    ours = resized_crops(pixels, boxes, mirrored)
    for i, (y, x, h, w) in enumerate(zip(*(b.tolist() for b in boxes), strict=True)):
        part = pixels[i : i + 1, :, y : y + h, x : x + w].float()
        expected = F.interpolate(part, (12, 12), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(ours[i], expected.flip(-1) if mirrored[i] else expected, rtol=1e-5, atol=1e-3)


def test_resident_resized_crops_are_cut_from_the_images_of_the_epoch() -> None:
    images, data = random_images(), Data(resized_crop=True, flip=True)
    batches = Batches(images, 4, seed=2, data=data, device=CPU)
    order, draws = batches._draw(1)
    x, y = batches.at(batches.per_epoch + 2)
    part = draws.part(8, 12, CPU)
    boxes = crop_boxes(12, 12, part.attempts, part.place)
    expected = batches._normalise(resized_crops(images.pixels[order[8:12]], boxes, part.mirrored))
    assert torch.equal(x, expected)
    assert torch.equal(y, images.labels[order[8:12]])


@pytest.mark.parametrize("side", [1, 4, 5, 30])
def test_cutout_zeroes_a_square_that_may_hang_over_the_edge(side: int) -> None:
    x = torch.rand(40, 3, 9, 11) + 1
    expected = x.numpy().copy()
    centres = torch.stack([torch.randint(9, (40,)), torch.randint(11, (40,))], dim=1)
    for image, (row, column) in zip(expected, centres.tolist(), strict=True):
        for i in range(row - side // 2, row - side // 2 + side):
            for j in range(column - side // 2, column - side // 2 + side):
                if 0 <= i < 9 and 0 <= j < 11:
                    image[:, i, j] = 0
    cut_out(x, centres, side)
    np.testing.assert_array_equal(x.numpy(), expected)


def test_cutout_changes_nothing_else_of_a_minibatch() -> None:
    images = random_images()
    plain = Batches(images, 8, seed=4, data=Data(crop_padding=2, flip=True), device=CPU)
    cut = Batches(images, 8, seed=4, data=Data(crop_padding=2, flip=True, cutout=6), device=CPU)
    other = Batches(images, 8, seed=5, data=Data(crop_padding=2, flip=True, cutout=6), device=CPU)
    (x, y), (x_cut, y_cut) = plain.at(7), cut.at(7)
    changed = x != x_cut
    assert torch.equal(y, y_cut)
    assert bool((x_cut[changed] == 0).all())
    # A square of 6 pixels covers at least 3x3 of an image, and at most 6x6.
    covered = changed.any(dim=1).sum(dim=(1, 2))
    assert int(covered.min()) >= 8
    assert int(covered.max()) <= 36
    assert not torch.equal(other.at(7)[0], x_cut)


def test_what_is_not_asked_for_takes_no_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = draw(5, 12, Data(crop_padding=2, flip=True), generator)
    reference = torch.Generator().manual_seed(0)
    top, left = torch.randint(5, (2, 5), generator=reference)
    assert torch.equal(draws.top, top)
    assert torch.equal(draws.left, left)
    assert torch.equal(draws.mirrored, torch.rand(5, generator=reference) < 0.5)
    assert torch.equal(generator.get_state(), reference.get_state())
