"""The library's own corruptions against Pillow, SciPy and plain arithmetic."""

import io
import itertools

import numpy as np
import pytest
import torch
from pictures import IMAGES, pictures
from PIL import Image
from scipy import ndimage

from latephase import LatePhaseValueError
from latephase.evaluation.corruptions import (
    CORRUPTIONS,
    OWN_SET,
    builtin_sets,
    corrupt,
)

FLAT = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)


def test_there_are_at_least_twelve_kinds_with_names_of_their_own_set():
    assert len(CORRUPTIONS) == 18
    assert all(kind.name == name for name, kind in CORRUPTIONS.items())
    assert "own" in OWN_SET


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_kind_changes_more_with_severity_and_keeps_the_format(kind):
    change = []
    for severity in range(1, 6):
        found = corrupt(IMAGES, kind, severity)
        assert found.dtype == torch.uint8
        assert found.shape == IMAGES.shape
        change.append(float((found.float() - IMAGES.float()).abs().mean()))
    assert change[0] > 0.1
    assert all(a < b for a, b in itertools.pairwise(change)), change
    # Still the same picture: nearer to it than other pictures are.
    others = float((IMAGES.float() - IMAGES.roll(1, 0).float()).abs().mean())
    assert change[0] < 0.7 * others


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_an_image_depends_on_seed_and_index_and_not_on_its_batch(kind):
    whole = corrupt(IMAGES, kind, 3, seed=4)
    for i in range(3):
        assert torch.equal(corrupt(IMAGES[i : i + 1], kind, 3, seed=4, first=i)[0], whole[i])
    random = kind not in {
        "brightness", "contrast", "defocus_blur", "gaussian_blur", "jpeg", "pixelate", "posterize", "saturation",
        "zoom_blur",
    }  # fmt: skip
    twins = corrupt(IMAGES[:1].expand(8, -1, -1, -1), kind, 3, seed=4)
    assert (len({t.numpy().tobytes() for t in twins}) > 1) == random
    assert any(not torch.equal(corrupt(IMAGES, kind, 3, seed=s), whole) for s in (5, 6)) == random


@pytest.mark.parametrize("shape", [(16, 24), (9, 7), (1, 1)])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_kind_takes_images_of_any_size(kind, shape):
    images = pictures(1, *shape)
    assert corrupt(images, kind, 5).shape == images.shape


@pytest.mark.parametrize(
    "kind", ["gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "pixelate", "elastic", "rotation", "contrast"]
)
def test_what_averages_or_moves_leaves_a_flat_image_flat(kind):
    assert torch.equal(corrupt(FLAT, kind, 5), FLAT)


def test_noises_have_the_deviation_that_they_say():
    flat = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    value = 128 / 255
    for kind, expected in {
        "gaussian_noise": CORRUPTIONS["gaussian_noise"].amounts[2],
        "shot_noise": (value / CORRUPTIONS["shot_noise"].amounts[2]) ** 0.5,
        "speckle_noise": value * CORRUPTIONS["speckle_noise"].amounts[2],
    }.items():
        noise = corrupt(flat, kind, 3).double() / 255 - value
        assert float(noise.std()) == pytest.approx(expected, rel=0.03)
        assert abs(float(noise.mean())) < 0.003
    impulse = corrupt(flat, "impulse_noise", 3)
    for end in (0, 255):
        assert float((impulse == end).double().mean()) == pytest.approx(0.03, abs=0.003)


def test_blurs_are_the_filters_that_they_say():
    """The blur of a single bright pixel is the filter itself."""
    point = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    point[..., 16, 16] = 255
    reach = np.hypot(*np.meshgrid(np.arange(33) - 16, np.arange(33) - 16))
    for kind in ("gaussian_blur", "defocus_blur", "motion_blur"):
        spread = corrupt(point, kind, 5)[0, 0].double().numpy()
        assert spread.sum() == pytest.approx(255, rel=0.25)  # rounding to whole values loses some
    disc = corrupt(point, "defocus_blur", 5)[0, 0].numpy()
    radius = 0.08 * 33
    assert (disc[reach > radius + 1] == 0).all()
    inner = disc[reach < radius - 1]
    assert inner.max() - inner.min() <= 1
    assert inner.max() == pytest.approx(255 / (np.pi * radius**2), rel=0.1)
    streak = corrupt(point, "motion_blur", 5)[0, 0].numpy()
    y, x = np.nonzero(streak)
    length = 0.25 * 33
    assert length - 2 <= np.hypot(np.ptp(y), np.ptp(x)) <= length + 3
    spread = np.linalg.eigvalsh(np.cov(np.stack([y, x]), aweights=streak[y, x]))
    assert spread[0] < 0.5 < spread[1]  # a line: narrow one way, long the other
    assert spread[1] == pytest.approx(length**2 / 12, rel=0.2)


def test_zoom_is_the_mean_of_magnifications_about_the_centre():
    x = IMAGES[0].double().numpy() / 255
    rows, columns = np.indices((32, 32)) - 15.5
    layers = []
    for factor in np.linspace(1, 1.18, 10):
        grid = [rows / factor + 15.5, columns / factor + 15.5]
        layers.append([ndimage.map_coordinates(channel, grid, order=1) for channel in x])
    judge = np.mean(layers, axis=0) * 255
    assert np.abs(corrupt(IMAGES, "zoom_blur", 3)[0].numpy() - judge).max() < 0.51


def test_light_kinds_do_the_arithmetic_that_they_say():
    x = IMAGES.double() / 255
    bright = (x + 0.22).clamp(max=1) * 255
    assert (corrupt(IMAGES, "brightness", 3).double() - bright).abs().max() < 0.51
    mean = x.mean(dim=(2, 3), keepdim=True)
    low = (mean + 0.38 * (x - mean)) * 255
    assert (corrupt(IMAGES, "contrast", 3).double() - low).abs().max() < 0.51
    grey = corrupt(IMAGES, "saturation", 5)
    assert torch.equal(grey[:, 0], grey[:, 1])
    pillow = np.asarray(Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy()).convert("L")).astype(int)
    assert np.abs(grey[0, 0].numpy().astype(int) - pillow).max() <= 1
    levels = corrupt(IMAGES, "posterize", 5).unique().tolist()
    assert levels == [0, 128, 255]


def test_fog_lightens_dark_images_unevenly():
    dark = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    fog = corrupt(dark, "fog", 5)[0].double() / 255
    assert float(fog.max()) == pytest.approx(0.85 * 0.8, abs=0.01)
    assert float(fog.min()) == pytest.approx(0.85 * 0.4, abs=0.01)
    assert torch.equal(fog[0], fog[2])


def test_jpeg_and_pixelate_against_pillow():
    image = Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy())
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=20, subsampling=2)
    stored = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)
    assert torch.equal(corrupt(IMAGES, "jpeg", 3)[0], stored)
    # At half the resolution every square of four pixels becomes their mean.
    blocks = IMAGES.double().unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    coarse = corrupt(IMAGES, "pixelate", 3)
    assert (coarse[:, :, ::2, ::2].double() - blocks).abs().max() <= 1  # Pillow rounds after each axis
    assert torch.equal(coarse[:, :, ::2, ::2], coarse[:, :, 1::2, 1::2])


def test_rotation_turns_about_the_centre_by_the_angle():
    rows, columns = np.indices((33, 33)) - 16.0
    ramp = torch.from_numpy((128 + 4 * columns).astype(np.uint8)).expand(8, 3, -1, -1)
    found = corrupt(ramp, "rotation", 5).double().numpy()
    inside = np.hypot(rows, columns) < 15
    signs = set()
    for image in found:
        slope = np.linalg.lstsq(np.c_[rows[inside], columns[inside]], image[0][inside] - 128, rcond=None)[0]
        assert np.degrees(np.arctan2(abs(slope[0]), slope[1])) == pytest.approx(36, abs=0.5)
        signs.add(np.sign(slope[0]))
    assert signs == {-1.0, 1.0}


def test_occlusion_covers_a_square_and_nothing_else():
    found = corrupt(FLAT.expand(2, 3, 16, 16), "occlusion", 5)
    assert ((found == 128).sum(dim=(2, 3)) == 64).all()
    assert (found == 128).all(dim=1).any(dim=2).sum(dim=1).tolist() == [8, 8]
    assert ((found == 128) | (found == 100)).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: corrupt(IMAGES, "snow", 1), "'snow'; use one of gaussian_noise, shot_noise"),
        (lambda: corrupt(IMAGES, "fog", 6), "severity 6; use 1 to 5"),
        (lambda: corrupt(IMAGES, "fog", 0), "severity 0"),
        (lambda: corrupt(IMAGES.float(), "fog", 1), r"torch\.float32; use uint8"),
        (lambda: corrupt(IMAGES[:, :1], "fog", 1), r"\(6, 1, 32, 32\); use \(N, 3, height, width\)"),
        (lambda: corrupt(IMAGES, "fog", 1, seed=-1), "seed: -1"),
        (lambda: builtin_sets(IMAGES[:0], torch.zeros(0)), "0 images"),
        (lambda: builtin_sets(IMAGES, torch.zeros(5)), "labels of shape"),
        (lambda: builtin_sets(IMAGES, torch.zeros(6), ["fogg"]), "'fogg'"),
        (lambda: builtin_sets(IMAGES, torch.zeros(6), batch_size=0), "batch_size: 0"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(LatePhaseValueError, match=says):
        call()
