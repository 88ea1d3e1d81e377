"""The library's own corruptions, the published arrays, and the errors on both."""

import io
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from latephase import LatePhaseError, LatePhaseValueError
from latephase.evaluation.corruptions import (
    CORRUPTIONS,
    EXTRA_KINDS,
    OWN_SET,
    PUBLISHED_KINDS,
    CorruptedSet,
    CorruptionErrors,
    builtin_sets,
    corrupt,
    corruption_errors,
    published_sets,
    relative_errors,
)


def pictures(count=6, height=32, width=32):
    """Coloured blobs with edges: smooth regions, texture and contrast, as photographs have."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.standard_normal((count, 3, height, width)), (0, 0, 4, 4), mode="wrap")
    smooth /= smooth.std()
    edges = ndimage.gaussian_filter(rng.standard_normal((count, 1, height, width)), (0, 0, 2, 2), mode="wrap") > 0
    values = 0.45 + 0.15 * smooth + 0.2 * edges + 0.03 * rng.standard_normal((count, 3, height, width))
    return torch.from_numpy((values.clip(0, 1) * 255).astype(np.uint8))


IMAGES = pictures()
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


# Sets and errors


def brightness_classifier(images):
    """Calls a picture bright when its mean is above a half: wrong under strong light, right otherwise."""
    mean = images.double().mean(dim=(1, 2, 3)) / 255
    return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def test_errors_of_a_classifier_on_the_own_set():
    labels = brightness_classifier(IMAGES).argmax(1)
    sets = builtin_sets(IMAGES, labels, ["brightness", "contrast"], batch_size=4)
    assert [(s.kind, s.severity) for s in sets] == [(k, v) for k in ("brightness", "contrast") for v in range(1, 6)]
    for _ in range(2):  # sets can be iterated over again
        images = torch.cat([x for x, _ in sets[2].batches])
        assert torch.equal(images, corrupt(IMAGES, "brightness", 3))
    found = corruption_errors(brightness_classifier, sets, OWN_SET, clean=0.0)
    for s, error in enumerate(found.errors["brightness"], start=1):
        wrong = brightness_classifier(corrupt(IMAGES, "brightness", s)).argmax(1) != labels
        assert error == pytest.approx(float(wrong.double().mean()))
    assert max(found.errors["brightness"]) > 0
    assert found.errors["contrast"] == (0.0,) * 5  # it keeps every mean
    assert found.mean == pytest.approx(sum(found.errors["brightness"]) / 10)
    assert found.by_severity == pytest.approx([e / 2 for e in found.errors["brightness"]])
    assert (found.samples, found.source, found.clean) == (6, OWN_SET, 0.0)
    assert json.loads(json.dumps(found.to_dict()))["errors"]["contrast"] == [0.0] * 5


def errors(table, clean=None, samples=100, source="test"):
    table = {kind: tuple(row) for kind, row in table.items()}
    severity = tuple(np.mean(list(table.values()), axis=0))
    return CorruptionErrors(source, samples, table, float(np.mean(severity)), severity, clean)


def test_mean_corruption_error_as_published():
    model = errors({"fog": [0.1, 0.1, 0.2, 0.2, 0.4], "snow": [0.3] * 5}, clean=0.05)
    base = errors({"fog": [0.2, 0.2, 0.4, 0.4, 0.8], "snow": [0.25] * 5}, clean=0.1)
    found = relative_errors(model, base)
    assert found.by_kind == pytest.approx({"fog": 0.5, "snow": 1.2})
    assert found.mce == pytest.approx(0.85)
    assert found.relative_by_kind == pytest.approx({"fog": 0.75 / 1.5, "snow": 1.25 / 0.75})
    assert found.relative_mce == pytest.approx((0.5 + 5 / 3) / 2)
    # It is the ratio of sums, not the mean of ratios.
    uneven = relative_errors(errors({"fog": [0.1, 0.1, 0.1, 0.1, 0.6]}), errors({"fog": [0.2, 0.1, 0.1, 0.1, 0.5]}))
    assert uneven.mce == pytest.approx(1.0)
    assert relative_errors(base, base).mce == 1
    assert relative_errors(base, base).relative_mce == 1
    no_clean = relative_errors(errors(model.errors), base)
    assert (no_clean.relative_mce, no_clean.relative_by_kind) == (None, {})
    gains = errors({"fog": [0.2] * 5, "snow": [0.05] * 5}, clean=0.1)  # a base that snow does not hurt
    assert relative_errors(model, gains).relative_mce is None


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (errors({"fog": [0.1] * 5}, source="CIFAR-10-C"), "on the same sets"),
        (errors({"fog": [0.1] * 5}, samples=99), "on the same sets"),
        (errors({"frost": [0.1] * 5}), "on the same sets"),
        (errors({"fog": [0.0] * 5}), "no error on fog"),
    ],
)
def test_relative_errors_refuse_what_is_not_comparable(other, says):
    with pytest.raises(LatePhaseValueError, match=says):
        relative_errors(errors({"fog": [0.1] * 5}), other)


def one(kind="fog", severity=1, count=2, label=0):
    return CorruptedSet(kind, severity, [(IMAGES[:count], torch.full((count,), label))])


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ([], "no sets"),
        ([one(count=0)], "fog at severity 1 holds no images"),
        ([one(), one()], "fog at severity 1 is there twice"),
        ([one()], r"fog at severities \[1\]; all of 1 to 5"),
        ([one(severity=s, count=s) for s in range(1, 6)], "the same images"),
        ([one(label=2)], "the model has 2 classes"),
    ],
)
def test_errors_refuse_bad_sets(sets, says):
    with pytest.raises(LatePhaseValueError, match=says):
        corruption_errors(brightness_classifier, sets, "test")
    with pytest.raises(LatePhaseValueError, match="clean 5"):
        corruption_errors(brightness_classifier, sets, "test", clean=5)


# Published arrays


@pytest.fixture
def folder(tmp_path):
    """Three images in the layout of CIFAR-10-C; the value of every pixel says where it belongs."""
    labels = np.tile(np.array([0, 1, 1], dtype=np.uint8), 5)
    np.save(tmp_path / "labels.npy", labels)
    for k, kind in enumerate(PUBLISHED_KINDS):
        images = np.zeros((15, 4, 6, 3), dtype=np.uint8)
        images[..., 0] = k
        images[..., 1] = np.arange(15)[:, None, None]
        images[:, :, :, 2] = np.arange(6)
        np.save(tmp_path / f"{kind}.npy", images)
    return tmp_path


def test_published_arrays_are_mapped_and_cut_by_severity(folder):
    sets = published_sets(folder, batch_size=2)
    assert [(s.kind, s.severity) for s in sets] == [(k, v) for k in PUBLISHED_KINDS for v in range(1, 6)]
    for i, part in enumerate(sets):
        for _ in range(2):
            x, y = (torch.cat(parts) for parts in zip(*part.batches, strict=True))
            assert x.shape == (3, 3, 4, 6)
            assert x.dtype == torch.uint8
            assert y.tolist() == [0, 1, 1]
            assert x[:, 0].unique().tolist() == [i // 5]
            assert x[:, 1, 0, 0].tolist() == [3 * (i % 5) + j for j in range(3)]
            assert x[0, 2, 0].tolist() == list(range(6))
    assert len(PUBLISHED_KINDS) == 15
    assert not set(PUBLISHED_KINDS) & set(EXTRA_KINDS)
    # The files stay on disk: what the sets hold is a view of a map.
    image = sets[0].batches.images
    while not isinstance(image, np.memmap):
        image = image.base
    assert str(image.filename).endswith("gaussian_noise.npy")


def test_errors_on_published_arrays(folder):
    def classify(x):
        """Right about every image from severity 1 to 3 of the first kind, always class 0 elsewhere."""
        known = (x[:, 0, 0, 0] == 0) & (x[:, 1, 0, 0] < 9)
        second = known & (x[:, 1, 0, 0] % 3 > 0)
        return torch.stack([~second, second], dim=1).double()

    found = corruption_errors(classify, published_sets(folder), "CIFAR-10-C")
    assert found.errors["gaussian_noise"] == (0, 0, 0, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert found.errors["fog"] == pytest.approx([2 / 3] * 5)
    assert found.mean == pytest.approx(2 / 3 * (1 - 3 / 75))


def spoil(name, array):
    return lambda folder: np.save(folder / name, array)


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda f: (f / "frost.npy").unlink(), LatePhaseError, "has no frost.npy .it holds brightness, contrast"),
        (lambda f: (f / "labels.npy").unlink(), LatePhaseError, "has no labels.npy"),
        (lambda f: (f / "fog.npy").write_bytes((f / "fog.npy").read_bytes()[:500]), LatePhaseError, "truncated"),
        (lambda f: (f / "fog.npy").write_bytes(b""), LatePhaseError, "cannot read .*fog.npy"),
        (spoil("fog.npy", np.zeros((15, 4, 6, 3))), LatePhaseValueError, "float64 of shape"),
        (spoil("fog.npy", np.zeros((15, 3, 4, 6), np.uint8)), LatePhaseValueError, r"\(5 n, height, width, 3\)"),
        (spoil("fog.npy", np.zeros((10, 4, 6, 3), np.uint8)), LatePhaseValueError, "10 images, and labels.npy has 15"),
        (spoil("fog.npy", np.array(5)), LatePhaseValueError, r"of shape \(\)"),
        (spoil("labels.npy", np.zeros(15)), LatePhaseValueError, "integer class"),
        (spoil("labels.npy", np.zeros((15, 1), int)), LatePhaseValueError, "integer class"),
    ],
)
def test_bad_files_are_refused_by_name(folder, damage, error, says):
    damage(folder)
    with pytest.raises(error, match=says):
        published_sets(folder)


def test_nothing_is_unpickled(folder):
    class Loud:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.save(folder / "fog.npy", np.array([Loud()] * 15, dtype=object), allow_pickle=True)
    with pytest.raises(LatePhaseError, match=r"cannot read .*fog\.npy"):
        published_sets(folder)


def test_a_folder_that_is_not_there_and_no_kinds(tmp_path):
    with pytest.raises(LatePhaseError, match="there is no such folder"):
        published_sets(tmp_path / "nowhere")
    with pytest.raises(LatePhaseError, match=r"no \.npy files"):
        published_sets(tmp_path)
    with pytest.raises(LatePhaseValueError, match="no kinds"):
        published_sets(tmp_path, [])
