"""Image folders that are decoded on the way, and archives that are read in place."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from experiment_helpers import assert_same
from PIL import Image

from latephase.experiments.config import Data
from latephase.experiments.data import Images, StreamedBatches, StreamedImages, load_images, load_split, make_batches
from latephase.experiments.data import folder as folder_source
from latephase.experiments.data.augmentation import crop_boxes
from latephase.experiments.data.encoded import centre_crop
from latephase.experiments.errors import ExperimentError
from latephase.experiments.methods import METHODS
from latephase.experiments.recipe import load_recipe
from latephase.experiments.trajectory import Trajectory

CPU = torch.device("cpu")
SHARED = Path(__file__).parents[3] / "shared" / "data" / "tinyimagenet64_20cls.tar.xz"


@pytest.fixture(autouse=True)
def _fresh_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latephase.experiments.data._read", {})


def write_folder(root: Path, per_class: int = 10, sizes: tuple[tuple[int, int], ...] = ((20, 16), (14, 25))) -> None:
    """Images of several sizes in three classes, every fourth one grey."""
    random = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            height, width = sizes[i % len(sizes)]
            shape = (height, width) if i % 4 == 0 else (height, width, 3)
            Image.fromarray(random.integers(256, size=shape, dtype=np.uint8)).save(root / name / f"{i:02}.png")


def streamed(root: Path, **changes: object) -> Data:
    values = {"image_size": 12, "resident": False, "decode_threads": 2} | changes
    return Data(name="folder", train=str(root), test=str(root), **values)  # type: ignore[arg-type]


def pack(folder: Path, archive: Path, mode: str) -> None:
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        tar.add(folder, arcname="train")


def test_streamed_images_hold_no_pixels_and_decode_to_the_resident_ones(tmp_path: Path) -> None:
    write_folder(tmp_path)
    stream, _ = load_images(streamed(tmp_path, resize=14))
    resident = folder_source.read(str(tmp_path), 12, 14)
    assert isinstance(stream, StreamedImages)
    assert not any(isinstance(v, torch.Tensor) and v.dtype == torch.uint8 for v in vars(stream).values())
    assert stream.classes == resident.classes == ("ant", "bee", "cat")
    assert stream.shape == resident.shape == (3, 12, 12)
    for source in (stream, pickle.loads(pickle.dumps(stream))):
        pixels, labels = (torch.cat(part) for part in zip(*source.chunks(7), strict=True))
        assert torch.equal(pixels, resident.pixels)
        assert torch.equal(labels, resident.labels)


def test_a_centre_crop_keeps_the_middle_of_the_shorter_side() -> None:
    image = Image.fromarray(np.arange(40, dtype=np.uint8)[None].repeat(20, 0)).convert("RGB")
    assert np.asarray(centre_crop(image, 20))[0, :, 0].tolist() == list(range(10, 30))
    assert centre_crop(image, 8, 10).size == (8, 8)
    middle = np.asarray(centre_crop(image, 8, 10))[0, :, 0].astype(float)
    np.testing.assert_allclose(middle, np.arange(12.5, 28, 2), atol=1)


def test_splits_subsets_and_label_noise_work_without_pixels(tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = streamed(tmp_path, subset=15, validation=6, label_noise=0.5)
    split = load_split(data, 1)
    assert isinstance(split.train, StreamedImages)
    assert isinstance(split.validation, StreamedImages)
    assert (len(split.train), len(split.validation), len(split.test)) == (15, 6, 30)
    assert not {f.name for f in split.train.files} & {f.name for f in split.validation.files}
    assert split.validation.labels.bincount().tolist() == [2, 2, 2]
    true = torch.tensor([("ant", "bee", "cat").index(Path(f.name).parent.name) for f in split.train.files])
    assert 0 < int((true != split.train.labels).sum()) <= 8


def test_a_streamed_minibatch_is_what_pil_makes_of_its_images(tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = streamed(tmp_path, resized_crop=True, flip=True)
    images, _ = load_images(data)
    batches = make_batches(images, 4, 3, data, CPU)
    assert isinstance(batches, StreamedBatches)
    x, y = batches.at(9)  # the second epoch's third minibatch
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    index, draws = batches._index(9), batches._draws(9)
    for row, i in enumerate(index.tolist()):
        image = Image.open(images.files[i].name).convert("RGB")
        part = draws.part(row, row + 1, CPU)
        top, left, h, w = (int(v) for v in crop_boxes(image.height, image.width, part.attempts, part.place))
        crop = image.crop((left, top, left + w, top + h)).resize((12, 12), Image.Resampling.BILINEAR)
        array = np.asarray(crop)[:, ::-1] if part.mirrored else np.asarray(crop)
        expected = (torch.from_numpy(array.copy()).permute(2, 0, 1) / 255 - mean[:, None, None]) / std[:, None, None]
        torch.testing.assert_close(x[row], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(y, images.labels[index])
    assert draws.mirrored.any()


@pytest.mark.parametrize("changes", [{"resized_crop": True, "cutout": 4}, {"crop_padding": 2, "flip": True}])
def test_a_streamed_minibatch_depends_on_seed_and_number_alone(tmp_path: Path, changes: dict[str, object]) -> None:
    write_folder(tmp_path)
    data = streamed(tmp_path, **changes)
    images, _ = load_images(data)
    straight = [make_batches(images, 4, 1, data, CPU).at(i) for i in range(16)]
    jumping = make_batches(images, 4, 1, data, CPU)
    for number in (15, 3, 4, 5, 0, 7, 6, 13):
        assert torch.equal(jumping.at(number)[0], straight[number][0])
        assert torch.equal(jumping.at(number)[1], straight[number][1])
    other = jumping.with_seed(2)
    assert not torch.equal(other.at(3)[0], straight[3][0])
    assert torch.equal(jumping.at(3)[0], straight[3][0])
    labels = torch.cat([y for _, y in jumping.epoch(1)])
    assert labels.bincount(minlength=3).sum() == 28


def test_few_minibatches_are_on_their_way_at_a_time(tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = streamed(tmp_path)
    batches = make_batches(load_images(data)[0], 4, 1, data, CPU)
    assert isinstance(batches, StreamedBatches)
    for number in (0, 1, 40, 2):
        batches.at(number)
        assert list(batches._coming) == [number + 1, number + 2, number + 3]


def test_streamed_training_goes_on_in_the_middle_bit_for_bit(tmp_path: Path) -> None:
    write_folder(tmp_path)
    options = [f"--data.{key}={tmp_path}" for key in ("train", "test")]
    options += ["--data.name=folder", "--data.image_size=12", "--data.resident=false", "--data.subset=null"]
    options += ["--data.flip=true", "--data.validation=3", "--training.batch_size=4", "--training.epochs=3"]
    recipe = load_recipe("digits-noisy", [*options, "--late_phase.members=2", "--model.width=4"])
    runs = [Trajectory(recipe, load_split(recipe.data, 0), 0, METHODS["late-phase"](recipe)) for _ in range(2)]
    whole, begun = runs
    assert isinstance(whole.batches, StreamedBatches)
    whole.run(whole.total)
    begun.run(11)
    state = pickle.loads(pickle.dumps(begun.state_dict()))
    resumed = Trajectory(recipe, load_split(recipe.data, 0), 0, METHODS["late-phase"](recipe))
    resumed.load_state_dict(state)
    resumed.run(resumed.total)
    assert_same(resumed.model.state_dict(), whole.model.state_dict())


def test_what_is_resident_is_decided_by_the_number_and_size_of_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "mixed")
    write_folder(tmp_path / "square", sizes=((12, 12),))

    def kind(folder: str, **changes: object) -> type:
        return type(load_images(streamed(tmp_path / folder, **({"resident": "auto"} | changes)))[0])

    assert kind("mixed") is Images
    # A resized crop wants the whole image: resident only where the image is no larger than what is kept of it.
    assert kind("mixed", resized_crop=True) is StreamedImages
    assert kind("square", resized_crop=True) is Images
    assert kind("mixed", resized_crop=True, resident=True) is Images
    monkeypatch.setattr("latephase.experiments.data.folder._RESIDENT_BYTES", 30 * 3 * 12 * 12 - 1)
    assert kind("mixed", decode_threads=1) is StreamedImages
    with pytest.raises(ExperimentError, match=r"resident = false needs data\.image_size"):
        load_images(streamed(tmp_path / "mixed", image_size=None))


def test_a_damaged_image_is_named_when_it_is_reached(tmp_path: Path) -> None:
    write_folder(tmp_path)
    bad = tmp_path / "bee" / "03.png"
    bad.write_bytes(bad.read_bytes()[:60])
    data = streamed(tmp_path)
    images, _ = load_images(data)
    batches = make_batches(images, 4, 0, data, CPU)
    with pytest.raises(ExperimentError, match=r"cannot read the image .*bee/03\.png"):
        list(batches.epoch(0))
    with pytest.raises(ExperimentError, match=r"cannot read the image .*bee/03\.png"):
        list(batches.plain(images))


@pytest.mark.parametrize("ending", [".tar", ".tar.xz", ".tgz"])
@pytest.mark.parametrize("resident", [True, False])
def test_an_archive_is_read_like_the_folder_in_it(tmp_path: Path, ending: str, resident: bool) -> None:
    write_folder(tmp_path / "images")
    archive = tmp_path / f"all{ending}"
    pack(tmp_path / "images", archive, {".tar": "w", ".tar.xz": "w:xz", ".tgz": "w:gz"}[ending])
    folder = folder_source.read(str(tmp_path / "images"), 12)
    images, _ = load_images(streamed(archive / "train", resident=resident))
    assert images.classes == folder.classes
    pixels, labels = (torch.cat(part) for part in zip(*images.chunks(16), strict=True))
    assert torch.equal(pixels, folder.pixels)
    assert torch.equal(labels, folder.labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name, "images"]


def test_archives_that_cannot_be_read_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "images", per_class=2)
    archive = tmp_path / "all.tar.xz"
    pack(tmp_path / "images", archive, "w:xz")
    with pytest.raises(ExperimentError, match=r"holds no images in val, .* its folders are train, to be named as"):
        folder_source.list_folder(str(archive / "val"))
    with pytest.raises(ExperimentError, match=r"there is no data archive .*none\.tar"):
        folder_source.list_folder(str(tmp_path / "none.tar" / "train"))
    with monkeypatch.context() as patch:
        patch.setattr("latephase.experiments.data.archive._LIMIT", 100)
        with pytest.raises(ExperimentError, match=r"unpacks to more than 0 GiB; pack it as a plain \.tar"):
            folder_source.list_folder(str(archive / "train"))
    archive.write_bytes(archive.read_bytes()[:-300])
    with pytest.raises(ExperimentError, match="as a tar archive; it may be truncated"):
        folder_source.list_folder(str(archive / "train"))
    archive.write_bytes(b"not an archive")
    with pytest.raises(ExperimentError, match="as a tar archive; it may be truncated"):
        folder_source.list_folder(str(archive / "train"))


@pytest.mark.parametrize("name", ["train/../../ant/1.png", "/train/ant/1.png"])
def test_a_name_that_leads_out_of_an_archive_is_refused(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 12)).save(buffer, format="PNG")
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(buffer.getvalue())
        tar.addfile(member, io.BytesIO(buffer.getvalue()))
    with pytest.raises(ExperimentError, match="holds the unsafe name"):
        folder_source.list_folder(str(tmp_path / "bad.tar" / "train"))


def test_links_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", per_class=2)
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(tmp_path / "images", arcname="train")
        link = tarfile.TarInfo("train/ant/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert len(folder_source.list_folder(str(tmp_path / "all.tar" / "train"))) == 6


@pytest.mark.skipif(not SHARED.is_file(), reason="needs the data of ../shared/data")
def test_the_shared_archive_is_whole_and_its_grey_images_are_rgb() -> None:
    images, test = load_images(
        Data(name="folder", train=str(SHARED / "train"), test=str(SHARED / "val"), image_size=64, resized_crop=True)
    )
    assert isinstance(images, Images)
    assert isinstance(test, Images)
    assert (images.pixels.shape, test.pixels.shape) == ((5000, 3, 64, 64), (1000, 3, 64, 64))
    assert images.labels.bincount().tolist() == [250] * 20
    pixels = torch.cat([images.pixels, test.pixels])
    grey = ((pixels[:, 0] == pixels[:, 1]) & (pixels[:, 1] == pixels[:, 2])).all(dim=(1, 2))
    # 120 files are grayscale; others may show no colour either.
    assert int(grey.sum()) >= 120
