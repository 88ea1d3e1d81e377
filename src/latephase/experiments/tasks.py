"""Which data a recipe names, and the task that is made of them."""

from __future__ import annotations

import torch

from latephase.experiments.config import Data, Recipe
from latephase.experiments.data import Split, load_split
from latephase.experiments.image_task import ImageTask
from latephase.experiments.task import Task
from latephase.experiments.text import Corpus, load_corpus
from latephase.experiments.text_task import TextTask

TEXT = "text"
"""What `data.name` says where text is read instead of images."""


def load_data(data: Data, seed: int) -> Split | Corpus:
    """Load the data of a run.

    Args:
        data: Source, sizes and noise.
        seed: The run's seed, which draws the split of images; text is always split in the same way.

    Returns:
        Training, validation and test images, or a text in three parts.

    Raises:
        ExperimentError: If the source is unknown, or its files are not what they should be.
    """
    return load_corpus(data.train) if data.name == TEXT else load_split(data, seed)


def make_task(recipe: Recipe, data: Split | Corpus, seed: int, device: torch.device) -> Task:
    """What a recipe trains.

    Args:
        recipe: Data, model and training.
        data: What `load_data` returned.
        seed: Seed of weights and minibatches.
        device: Where model and minibatches live.

    Returns:
        The task.
    """
    if isinstance(data, Split):
        return ImageTask(recipe, data, seed, device)
    return TextTask(recipe, data, seed, device)


def metrics_of(recipe: Recipe) -> tuple[str, ...]:
    """The scores of what a recipe trains.

    Args:
        recipe: The recipe.

    Returns:
        Their names, the one that matters first.
    """
    return (TextTask if recipe.data.name == TEXT else ImageTask).metrics
