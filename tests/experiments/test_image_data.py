"""Images, their sources, splits and minibatches, against plain NumPy and by their laws."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from latephase.experiments.config import Data
from latephase.experiments.data import SOURCES, Batches, Images, load_images, load_split
from latephase.experiments.data import folder as folder_source
from latephase.experiments.data import parquet as parquet_source
from latephase.experiments.data.split import add_label_noise
from latephase.experiments.errors import ExperimentError

CPU = torch.device("cpu")
SHARED = Path(__file__).parents[3] / "shared" / "data"


def random_images(n: int = 40, size: int = 6, channels: int = 3, classes: int = 4) -> Images:
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randint(256, (n, channels, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % classes
    return Images(pixels, labels, tuple("abcdefgh"[:classes]), "made up")


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def write_parquet(path: Path, images: Images, labels: list[int] | None = None, names: bool = True) -> None:
    values = [{"bytes": png(image.permute(1, 2, 0).numpy()), "path": None} for image in images.pixels]
    table = pa.table({"img": values, "label": images.labels.tolist() if labels is None else labels})
    if names:
        features = {"features": {"label": {"names": list(images.classes), "_type": "ClassLabel"}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": features})})
    pq.write_table(table, path)


@pytest.fixture(autouse=True)
def _fresh_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latephase.experiments.data._read", {})


def test_digits_are_whole_and_in_eight_bits() -> None:
    images, test = load_images(Data(name="digits"))
    assert test is None
    assert images.pixels.shape == (1797, 1, 8, 8)
    assert images.pixels.dtype == torch.uint8
    assert int(images.pixels.max()) == 255


def test_a_split_is_disjoint_balanced_and_drawn_by_the_seed() -> None:
    data = Data(name="digits", subset=300, validation=200, test_images=500)
    images, _ = load_images(data)
    one, again, other = load_split(data, 1), load_split(data, 1), load_split(data, 2)
    assert torch.equal(one.train.pixels, again.train.pixels)
    assert not torch.equal(one.train.pixels, other.train.pixels)
    assert one.validation is not None
    rows = torch.cat([part.pixels.flatten(1) for part in (one.train, one.validation, one.test)])
    assert len(rows) == 1000
    everything = {image.numpy().tobytes() for image in images.pixels}
    assert {row.numpy().tobytes() for row in rows} <= everything
    # A few digits occur twice in the source; apart from them no image is in two parts.
    assert len({row.numpy().tobytes() for row in rows}) >= 1000 - (1797 - len(everything))
    for part, size in ((one.train, 30), (one.validation, 20), (one.test, 50)):
        assert (part.labels.bincount() - size).abs().max() <= 2


def test_a_fixed_split_seed_splits_every_seed_alike() -> None:
    data = Data(name="digits", subset=50, split_seed=9)
    assert torch.equal(load_split(data, 1).train.pixels, load_split(data, 2).train.pixels)


def test_label_noise_replaces_the_fraction_and_leaves_the_held_out_labels() -> None:
    labels = torch.arange(1000) % 10
    noisy = add_label_noise(labels, 10, 0.2, torch.Generator().manual_seed(0))
    # A tenth of the replacements draw the right class again: 180 are expected to differ.
    assert 140 <= int((noisy != labels).sum()) <= 200
    assert torch.equal(labels, torch.arange(1000) % 10)
    clean = load_split(Data(name="digits", subset=300, validation=100, test_images=200), 3)
    dirty = load_split(Data(name="digits", subset=300, validation=100, test_images=200, label_noise=0.5), 3)
    assert torch.equal(clean.train.pixels, dirty.train.pixels)
    assert 0 < int((clean.train.labels != dirty.train.labels).sum()) <= 150
    assert torch.equal(clean.test.labels, dirty.test.labels)
    assert clean.validation is not None
    assert dirty.validation is not None
    assert torch.equal(clean.validation.labels, dirty.validation.labels)


def test_more_images_than_there_are_is_an_error() -> None:
    with pytest.raises(ExperimentError, match=r"digits has 1797 images: too few .* and 1500 to train on"):
        load_split(Data(name="digits", subset=1500, validation=100, test_images=200), 0)


def test_a_minibatch_is_cropped_flipped_and_normalised_as_numpy_does_it() -> None:
    images, data = random_images(), Data(crop_padding=2, flip=True)
    batches = Batches(images, 8, seed=5, data=data, device=CPU)
    x, y = batches.at(7)  # the second epoch's third minibatch
    order, draws = batches._draw(1)
    index, top, left, mirrored = (draw[16:24].numpy() for draw in (order, draws.top, draws.left, draws.mirrored))
    raw = images.pixels.numpy().astype(np.float64)
    mean, std = raw.mean(axis=(0, 2, 3)), raw.std(axis=(0, 2, 3))
    padded = np.pad(raw, ((0, 0), (0, 0), (2, 2), (2, 2)))
    for i in range(8):
        crop = padded[index[i], :, top[i] : top[i] + 6, left[i] : left[i] + 6]
        crop = crop[:, :, ::-1] if mirrored[i] else crop
        expected = (crop - mean[:, None, None]) / std[:, None, None]
        np.testing.assert_allclose(x[i].numpy(), expected, atol=1e-4)
    assert torch.equal(y, images.labels[torch.from_numpy(index)])
    assert 0 < mirrored.sum() < 8
    assert len(set(top)) > 1


def test_an_epoch_shows_every_image_once_and_the_next_one_in_another_order() -> None:
    images = random_images()
    batches = Batches(images, 8, seed=5, data=Data(), device=CPU)
    mean = images.pixels.float().mean(dim=(0, 2, 3))[:, None, None]
    std = images.pixels.double().std(dim=(0, 2, 3), correction=0).float()[:, None, None]
    epochs = [torch.cat([x for x, _ in batches.epoch(e)]) * std + mean for e in (0, 1)]
    rows = [sorted(image.round().int().flatten().tolist() for image in epoch) for epoch in epochs]
    assert rows[0] == rows[1] == sorted(image.int().flatten().tolist() for image in images.pixels)
    assert not torch.equal(epochs[0], epochs[1])


def test_a_minibatch_depends_on_seed_and_number_alone() -> None:
    images, data = random_images(400), Data(crop_padding=1, flip=True)
    in_order = Batches(images, 8, seed=1, data=data, device=CPU)
    jumping = Batches(images, 8, seed=1, data=data, device=CPU)
    jumping._block = 7  # blocks are only a matter of speed
    straight = [in_order.at(i) for i in range(120)]
    for number in (119, 3, 60, 0, 49, 50):
        assert torch.equal(jumping.at(number)[0], straight[number][0])
        assert torch.equal(jumping.at(number)[1], straight[number][1])
    other = Batches(images, 8, seed=2, data=data, device=CPU)
    assert not torch.equal(other.at(0)[1], straight[0][1])


def test_channels_last_changes_the_layout_and_nothing_else() -> None:
    images = random_images()
    plain = Batches(images, 8, seed=1, data=Data(flip=True), device=CPU)
    last = Batches(images, 8, seed=1, data=Data(flip=True), device=CPU, channels_last=True)
    assert torch.equal(plain.at(3)[0], last.at(3)[0])
    assert last.at(3)[0].is_contiguous(memory_format=torch.channels_last)


def test_held_out_images_come_in_order_without_augmentation() -> None:
    images = random_images()
    batches = Batches(images, 8, seed=1, data=Data(crop_padding=2, flip=True), device=CPU)
    parts = list(batches.plain(images, batch_size=15))
    assert [len(y) for _, y in parts] == [15, 15, 10]
    assert torch.equal(torch.cat([y for _, y in parts]), images.labels)
    x = torch.cat([x for x, _ in parts]).double()
    torch.testing.assert_close(x.mean(dim=(0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(dim=(0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64))


def test_too_large_a_minibatch_is_an_error() -> None:
    with pytest.raises(ExperimentError, match="batch_size = 41 is more than the 40 images"):
        Batches(random_images(), 41, seed=0, data=Data(), device=CPU)


def test_parquet_reads_back_what_was_written(tmp_path: Path) -> None:
    images = random_images()
    write_parquet(tmp_path / "train.parquet", images)
    read = parquet_source.read(str(tmp_path / "train.parquet"))
    assert torch.equal(read.pixels, images.pixels)
    assert torch.equal(read.labels, images.labels)
    assert read.classes == images.classes


def test_parquet_without_class_names_counts_the_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", random_images(), names=False)
    assert parquet_source.read(str(tmp_path / "train.parquet")).classes == ("0", "1", "2", "3")


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write_parquet(path, random_images())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ExperimentError, match=r"cannot read .*train\.parquet as parquet; it may be truncated"):
        parquet_source.read(str(path))


def test_a_missing_parquet_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"there is no data file .*none\.parquet"):
        load_images(Data(name="parquet", train=str(tmp_path / "none.parquet")))


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    images = random_images()
    write_parquet(tmp_path / "train.parquet", images, labels=[7, *images.labels.tolist()[1:]])
    with pytest.raises(ExperimentError, match="labels from 0 to 7, but 4 classes take labels from 0 to 3"):
        parquet_source.read(str(tmp_path / "train.parquet"))


def test_a_damaged_image_is_named_by_its_row(tmp_path: Path) -> None:
    values = [{"bytes": b"not an image", "path": None}]
    pq.write_table(pa.table({"img": values, "label": [0]}), tmp_path / "bad.parquet")
    with pytest.raises(ExperimentError, match="cannot read the image in row 0"):
        parquet_source.read(str(tmp_path / "bad.parquet"))


def test_another_layout_lists_the_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0], "label": [0]}), tmp_path / "other.parquet")
    with pytest.raises(ExperimentError, match=r"no column of images .*x \(double\), label \(int64\)"):
        parquet_source.read(str(tmp_path / "other.parquet"))


def test_folders_are_read_in_order_as_rgb_and_resized(tmp_path: Path) -> None:
    for name, size in (("cat", (8, 10)), ("ant", (12, 8))):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full(size, 200, dtype=np.uint8)).save(tmp_path / name / "grey.png")
        Image.fromarray(np.full((*size, 3), 9, dtype=np.uint8)).save(tmp_path / name / "rgb.PNG")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    images = folder_source.read(str(tmp_path), size=6)
    assert images.classes == ("ant", "cat")
    assert images.pixels.shape == (4, 3, 6, 6)
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.pixels[0].unique().tolist() == [200]
    with pytest.raises(ExperimentError, match=r"images of several sizes .*set data\.image_size"):
        folder_source.read(str(tmp_path))


def test_folders_that_are_missing_empty_or_different_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="there is no data folder"):
        folder_source.read(str(tmp_path / "none"))
    with pytest.raises(ExperimentError, match="holds no images"):
        folder_source.read(str(tmp_path))
    for part, name in (("train", "a"), ("test", "b")):
        (tmp_path / part / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(tmp_path / part / name / "1.png")
    with pytest.raises(ExperimentError, match="different classes: a, b"):
        load_images(Data(name="folder", train=str(tmp_path / "train"), test=str(tmp_path / "test")))


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(ExperimentError, match="unknown data set 'parket'; did you mean parquet"):
        load_images(Data(name="parket"))
    assert set(SOURCES) == {"digits", "parquet", "folder", "cifar10", "cifar100"}


def test_torchvisions_cifar_is_read_from_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert root == str(tmp_path)
            self.data = np.full((5 if train else 3, 32, 32, 3), 7, dtype=np.uint8)
            self.targets = [0, 1, 2, 0, 1][: len(self.data)]
            self.classes = ["x", "y", "z"]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fake)
    train, test = load_images(Data(name="cifar10", train=str(tmp_path)))
    assert test is not None
    assert (train.pixels.shape, test.pixels.shape) == ((5, 3, 32, 32), (3, 3, 32, 32))

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR100", refuse)
    with pytest.raises(ExperimentError, match=r"cannot read CIFAR100 .*no network"):
        load_images(Data(name="cifar100", train=str(tmp_path)))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data of ../shared/data")
def test_the_shared_parquet_files_have_the_statistics_they_claim() -> None:
    images = parquet_source.read(str(SHARED / "cifar10_jpeg75_test.parquet"))
    assert images.pixels.shape == (10000, 3, 32, 32)
    assert images.labels.bincount().tolist() == [1000] * 10
    assert images.classes[:2] == ("airplane", "automobile")
    mean, _ = images.normalisation()
    torch.testing.assert_close(mean, torch.tensor([0.4942, 0.4851, 0.4504]), atol=2e-3, rtol=0)
