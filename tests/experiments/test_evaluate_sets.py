"""What `latephase evaluate` reads: other sets of images, published corruptions, a base; and that it streams."""

import io
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from evaluated import evaluated, images, trained
from experiment_helpers import tiny_recipe, trajectory
from PIL import Image

from latephase.experiments.errors import ExperimentError
from latephase.experiments.evaluate import ood_sets
from latephase.experiments.evaluate.ood_sets import open_set
from latephase.experiments.evaluate.predictions import Scores, predictions
from latephase.experiments.evaluate.subject import Subject
from latephase.experiments.evaluate.target import Run
from latephase.experiments.outcome import predictor_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("sets"), methods="[base,late-phase]", seeds=1)


def parquet(path: Path, count: int, column: str = "img") -> Path:
    rows = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.fromarray(np.full((6, 9, 3), 20 * i, dtype=np.uint8)).save(buffer, format="PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({column: rows}), path)
    return path


def test_a_folder_without_folders_in_it_and_a_parquet_file_are_sets(tmp_path: Path) -> None:
    folder = open_set(str(images(tmp_path / "pictures", 5)), (1, 8, 8), 60)
    assert (folder.name, len(folder), folder.changes) == ("pictures", 5, "resized from 12x12 to 8x8, made grey")
    chunks = [pixels for pixels, _ in folder.chunks(2)]
    assert [tuple(pixels.shape) for pixels in chunks] == [(2, 1, 8, 8), (2, 1, 8, 8), (1, 1, 8, 8)]
    assert torch.equal(torch.cat(chunks), torch.cat([pixels for pixels, _ in folder.chunks(5)]))
    file = open_set(str(parquet(tmp_path / "few.parquet", 4)), (3, 6, 6), 60, most=3)
    assert (file.name, len(file)) == ("few", 3)
    (pixels,) = (pixels for pixels, _ in file.chunks(10))
    assert pixels[:, 0, 0, 0].tolist() == [0, 20, 40]


def test_a_set_of_the_models_own_size_is_left_as_it_is(tmp_path: Path) -> None:
    folder = images(tmp_path / "same" / "deep", 3).parent
    found = open_set(str(folder), (3, 12, 12), 60)
    assert found.changes == ""
    (pixels,) = (pixels for pixels, _ in found.chunks(10))
    expected = np.asarray(Image.open(folder / "deep/1.png").convert("RGB"))
    assert np.array_equal(pixels[1].permute(1, 2, 0).numpy(), expected)


def test_noise_is_as_large_as_the_test_set() -> None:
    noise = open_set("gaussian", (1, 4, 4), 7)
    assert (noise.name, len(noise)) == ("gaussian noise", 7)
    assert len(open_set("uniform", (1, 4, 4), 7, most=3)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [([], "holds 0 images"), (["x"], "has no column of images; its columns are img")],
)
def test_a_parquet_file_without_images_is_refused(tmp_path: Path, content: list[str], message: str) -> None:
    path = tmp_path / "odd.parquet"
    kind = pa.string() if content else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"img": pa.array(content, kind)}), path)
    with pytest.raises(ExperimentError, match=message):
        open_set(str(path), (3, 8, 8), 10)


def test_a_row_without_bytes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "hole.parquet"
    pq.write_table(pa.table({"img": [{"bytes": None, "path": "a"}, {"bytes": None, "path": "b"}]}), path)
    with pytest.raises(ExperimentError, match="holds no bytes for the image in row 0"):
        open_set(str(path), (3, 8, 8), 10)


def test_what_torchvision_cannot_find_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no network here")

    monkeypatch.setattr("torchvision.datasets.SVHN", refuse)
    with pytest.raises(ExperimentError, match=r"cannot read svhn in .*, nor download it to there \(no network here\)"):
        open_set(f"svhn:{tmp_path}", (3, 32, 32), 10)


def test_svhns_channels_come_first_and_cifars_last(monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        def __init__(self, *_: object, **__: object) -> None:
            self.data = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)

    monkeypatch.setattr("torchvision.datasets.SVHN", Found)
    (pixels,) = (pixels for pixels, _ in open_set("svhn", (3, 4, 4), 10).chunks(9))
    assert np.array_equal(pixels.numpy(), Found().data)


def test_published_corruptions_and_a_base_of_ones_own(run: Path, tmp_path: Path) -> None:
    # The layout of CIFAR-10-C is of colour images, so the model is trained on such.
    folder = images(tmp_path / "data/train/a", 30, size=8).parent
    images(folder / "b", 30, size=8, seed=1)
    images(tmp_path / "data/test/a", 8, size=8, seed=2)
    images(tmp_path / "data/test/b", 8, size=8, seed=3)
    data = {"data__name": "folder", "data__train": folder, "data__test": tmp_path / "data/test"}
    own = {"data__subset": None, "data__test_images": None, "data__validation": 12, "data__label_noise": 0}
    colour = trained(tmp_path / "colour", methods="[base,late-phase]", seeds=1, **data, **own)
    generator = np.random.default_rng(0)
    (tmp_path / "CIFAR-2-C").mkdir()
    np.save(tmp_path / "CIFAR-2-C/labels.npy", np.tile([0, 1, 0, 1], 5))
    np.save(tmp_path / "CIFAR-2-C/fog.npy", generator.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    asked = ["--corruptions", str(tmp_path / "CIFAR-2-C"), "--kinds=fog"]
    base = f"--relative-to={colour / 'digits-noisy/seed-0/base'}"
    (setting,) = evaluated(colour / "digits-noisy/seed-0/late-phase", *asked, base)["settings"]
    found = setting["methods"]["late-phase"]["runs"][0]["corruptions"]["model"]
    assert setting["corruptions"]["source"] == found["source"] == "CIFAR-2-C"
    assert (found["samples"], list(found["errors"])) == (4, ["fog"])
    together = evaluated(colour, *asked, "--severities=2,4")["settings"][0]["methods"]
    assert together["base"]["runs"][0]["corruptions"]["model"]["severities"] == [2, 4]
    both = [together[m]["runs"][0]["corruptions"]["model"] for m in ("late-phase", "base")]
    assert both[0]["relative"]["mce"] == pytest.approx(sum(both[0]["errors"]["fog"]) / sum(both[1]["errors"]["fog"]))


def subject_of(method: str) -> Subject:
    recipe = tiny_recipe(training__epochs=4)
    made = trajectory(method, recipe)
    made.run(made.total)
    subject = Subject(Run(recipe, method, 0, Path("none")), made, predictor_of(made, method))
    subject.predictor.model.eval()
    return subject


class Watched:
    """Images that come in many minibatches, and count how many of these are alive at a time."""

    def __init__(self, images: object, times: int) -> None:
        self.images, self.times = images, times
        self.shape, self.most = images.shape, 0  # type: ignore[attr-defined]
        self._alive: list[weakref.ref[torch.Tensor]] = []

    def chunks(self, _: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(self.times):
            for pixels, labels in self.images.chunks(10):  # type: ignore[attr-defined]
                mine = pixels.clone()
                self._alive.append(weakref.ref(mine))
                yield mine, labels
                del mine, pixels
                self.most = max(self.most, sum(ref() is not None for ref in self._alive))


def kept_by(scores: Scores) -> int:
    """Bytes of all tensors that a stream of scores keeps."""
    seen: set[int] = set()
    total, open_objects = 0, [scores.__dict__]
    while open_objects:
        value = open_objects.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, dict):
            open_objects.extend(value.values())
        elif isinstance(value, list | tuple):
            open_objects.extend(value)
        elif hasattr(value, "__dict__"):
            open_objects.append(value.__dict__)
    return total


def test_nothing_of_the_minibatches_is_kept_but_two_numbers_for_each_sample() -> None:
    scores = Scores(None)
    kept = []
    for _ in range(3):
        for _ in range(5):
            scores.update(torch.randn(20, 50), torch.randint(50, (20,)))
        kept.append(kept_by(scores))
    # A confidence in float64 and a bool for each of 100 samples; the logits alone would be 20,000 bytes.
    assert kept[1] - kept[0] == kept[2] - kept[1] == 100 * 9


@pytest.mark.parametrize("method", ["base", "late-phase"])
def test_predictions_hold_no_more_minibatches_of_a_larger_set(method: str) -> None:
    subject = subject_of(method)
    test = subject.images.split.test
    most = []
    for times in (1, 4):
        watched = Watched(test, times)
        object.__setattr__(subject.images.split, "test", watched)
        found = predictions(subject)
        assert found["model"]["risk_coverage"]["samples"] == times * len(test)
        most.append(watched.most)
    assert most[0] == most[1] <= 2


def test_a_large_set_is_decoded_a_few_images_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ood_sets, "_KEPT_BYTES", 0)
    found = open_set(str(images(tmp_path / "many", 40)), (3, 12, 12), 60)
    opened: list[int] = []
    fitted = ood_sets._fitted
    monkeypatch.setattr(ood_sets, "_fitted", lambda *a: (opened.append(1), fitted(*a))[1])
    for i, (pixels, _) in enumerate(found.chunks(4)):
        assert len(pixels) == 4
        assert len(opened) == 4 * (i + 1)
    assert found.kept == []
