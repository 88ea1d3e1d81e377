"""What of a run is not what was published."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from latephase.experiments.config import Data, Recipe
from latephase.experiments.data import load_images
from latephase.experiments.recipe import identity
from latephase.experiments.samples import Images, samples_of
from latephase.experiments.tasks import TEXT
from latephase.experiments.text import load_corpus

# What a run may choose freely: it says where things are and how they are computed, not what.
_FREE = ("compute.device", "compute.threads", "compute.channels_last", "compute.onednn", "evaluate_every")
_FILES = ("data.train", "data.test", "data.resident", "model.weights")
_JPEG = b"\xff\xd8\xff"


def deviations(ran: Recipe, published: Recipe, *, read: bool = True) -> list[str]:
    """Every way in which a recipe is not the published one.

    Args:
        ran: The recipe that is run.
        published: The shipped recipe, with the paper's hyper-parameters.
        read: Whether the data may be looked at.

    Returns:
        Sentences without a full stop; none if it is the published one.
    """
    found = []
    ours, theirs = identity(ran), identity(published)
    for key in ours:
        if ours[key] == theirs[key] or key in _FREE or key in _FILES:
            continue
        found.append(f"{key} is {ours[key]} instead of {theirs[key]}")
    if ran.seeds < published.seeds:
        found.append(f"{ran.seeds} of {published.seeds} seeds")
    if read:
        found += _other_text(ran) if ran.data.name == TEXT else _other_images(ran)
    return found


def _other_text(ran: Recipe) -> list[str]:
    corpus, expected = load_corpus(ran.data.train), ran.text.bytes
    if expected is None or len(corpus) == expected:
        return []
    return [f"the text is {corpus.source}, {len(corpus):,} bytes instead of {expected:,}"]


def _other_images(ran: Recipe) -> list[str]:
    data = ran.data
    if data.name in ("cifar10", "cifar100"):
        if data.train is None or not data.train.endswith(".parquet"):
            return []
        lossy = ", a lossy JPEG copy of the images: absolute accuracies do not compare" if _is_jpeg(data) else ""
        found = [f"the images are those of {Path(data.train).name}{lossy}"]
        expected = samples_of(ran)
        assert isinstance(expected, Images)
        images, _ = load_images(data)
        if len(images.classes) != expected.classes or images.shape[1] != expected.size:
            found.append(f"they have {len(images.classes)} classes and {images.shape[1]} pixels a side")
        return found
    if data.name != "folder" or data.images is None or data.classes is None:
        return []
    images, _ = load_images(data)
    if (len(images), len(images.classes)) == (data.images, data.classes):
        return []
    return [
        f"{data.train} holds {len(images):,} images of {len(images.classes)} classes instead of "
        f"{data.images:,} of {data.classes}"
    ]


def _is_jpeg(data: Data) -> bool:
    """Whether the first image of a parquet file is a JPEG."""
    assert data.train is not None
    batch = next(pq.ParquetFile(data.train).iter_batches(batch_size=1))
    structs = (value for column in batch.to_pylist() for value in column.values() if isinstance(value, dict))
    return any(bytes(value.get("bytes") or b"").startswith(_JPEG) for value in structs)
