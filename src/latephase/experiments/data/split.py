"""Training, validation and test images of a run, with label noise where it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from latephase.experiments.config import Data
from latephase.experiments.data.images import Images
from latephase.experiments.data.streamed import StreamedImages
from latephase.experiments.errors import ExperimentError


@dataclass(frozen=True)
class Split:
    """The images of one run, resident or streamed.

    Attributes:
        train: What is trained on; its labels may carry noise.
        validation: Images held out of the training images, or None.
        test: What the results are measured on.
    """

    train: Images | StreamedImages
    validation: Images | StreamedImages | None
    test: Images | StreamedImages


def split_images(images: Images | StreamedImages, test: Images | StreamedImages | None, data: Data, seed: int) -> Split:
    """Draw test set (where there is none), validation set and training subset, then the label noise.

    Every draw is class-balanced as far as the numbers allow. The labels of validation and test images stay as
    they are.

    Args:
        images: The images to train on.
        test: The test images of the source, or None to draw them from `images`.
        data: Sizes and noise.
        seed: Seed of all draws.

    Returns:
        The split.

    Raises:
        ExperimentError: If more images are asked for than there are.
    """
    generator = Generator().manual_seed(seed)
    order = _balanced_order(images.labels, len(images.classes), generator)
    test_size = 0
    if test is None:
        test_size = data.test_images if data.test_images is not None else len(images) // 3
    left = len(images) - test_size - data.validation
    wanted = data.subset if data.subset is not None else left
    if left < 1 or wanted > left:
        raise ExperimentError(
            f"{images.source} has {len(images)} images: too few for {test_size} test images, data.validation = "
            f"{data.validation} and {'at least one' if data.subset is None else data.subset} to train on"
        )
    sizes = [test_size, data.validation, wanted, left - wanted]
    test_index, validation_index, train_index, _ = (part.sort().values for part in order.split(sizes))
    train = images.take(train_index)
    noisy = add_label_noise(train.labels, len(images.classes), data.label_noise, generator)
    return Split(
        train=replace(train, labels=noisy),
        validation=images.take(validation_index) if data.validation else None,
        test=images.take(test_index) if test is None else test,
    )


def add_label_noise(labels: Tensor, classes: int, fraction: float, generator: Generator) -> Tensor:
    """Replace a fraction of the labels by classes drawn uniformly from all classes, the right one included.

    Args:
        labels: int64, (N,); not changed.
        classes: Number of classes.
        fraction: Share of the labels that are replaced, rounded to a whole number of them.
        generator: What draws them.

    Returns:
        The new labels, (N,).
    """
    chosen = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    noisy = labels.clone()
    noisy[chosen] = torch.randint(classes, (len(chosen),), generator=generator)
    return noisy


def _balanced_order(labels: Tensor, classes: int, generator: Generator) -> Tensor:
    """A random order of which every stretch holds the classes in equal parts, as long as they last."""
    shuffled = torch.randperm(len(labels), generator=generator)
    rank = torch.empty(len(labels), dtype=torch.int64)
    for label in range(classes):
        of_class = shuffled[labels[shuffled] == label]
        rank[of_class] = torch.arange(len(of_class))
    # Images of equal rank, one of each class, stand in the shuffled order.
    return shuffled[rank[shuffled].argsort(stable=True)]
