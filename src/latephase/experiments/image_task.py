"""Classification of images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from latephase.experiments.config import Recipe
from latephase.experiments.data import Minibatches, Split, make_batches, minibatches_per_epoch
from latephase.experiments.models import build_model
from latephase.experiments.task import Task


class ImageTask(Task):
    """One label for each image.

    Args:
        recipe: Data, model and training.
        split: The images.
        seed: Seed of weights, order and augmentation.
        device: Where model and minibatches live.
    """

    metrics = ("accuracy", "nll", "ece", "brier")
    kind = "images"

    def __init__(self, recipe: Recipe, split: Split, seed: int, device: torch.device) -> None:
        super().__init__(recipe, seed, device)
        self.split = split

    @cached_property
    def batches(self) -> Minibatches:
        """The training minibatches, augmented."""
        recipe = self.recipe
        return make_batches(
            self.split.train,
            recipe.training.batch_size,
            self.seed,
            recipe.data,
            self.device,
            channels_last=recipe.compute.channels_last,
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Number of classes and of images."""
        split = self.split
        return {
            "classes": len(split.train.classes),
            "train": len(split.train),
            "validation": 0 if split.validation is None else len(split.validation),
            "test": len(split.test),
        }

    @property
    def per_epoch(self) -> int:
        """Full minibatches of one pass over the images."""
        return minibatches_per_epoch(self.split.train, self.recipe.training.batch_size)

    def fresh_model(self, seed: int) -> nn.Module:
        """The recipe's classifier for these images."""
        channels, _, size = self.split.train.shape
        classes = len(self.split.train.classes)
        model = build_model(self.recipe.model, classes=classes, channels=channels, size=size, seed=seed)
        layout = torch.channels_last if self.recipe.compute.channels_last else torch.contiguous_format
        return model.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]

    def validation(self) -> Iterator[tuple[Tensor, Tensor]] | None:
        """Images in their own order, without augmentation."""
        images = self.split.validation
        return None if images is None else self.batches.plain(images)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images in their own order, without augmentation."""
        return self.batches.plain(self.split.test)
