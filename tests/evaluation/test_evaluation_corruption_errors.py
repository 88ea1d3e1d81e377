"""Errors on corrupted sets, relative errors, and the published arrays."""

import json

import numpy as np
import pytest
import torch
from pictures import IMAGES

from latephase import LatePhaseError, LatePhaseValueError
from latephase.evaluation.corruptions import (
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
