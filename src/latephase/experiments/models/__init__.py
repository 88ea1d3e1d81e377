"""Models: a small CNN, wide ResNets, and every classifier of torchvision."""

from __future__ import annotations

import re

import torch
from torch import nn

from latephase.experiments.config import Model
from latephase.experiments.errors import ExperimentError, unknown
from latephase.experiments.models.small_cnn import SmallCNN
from latephase.experiments.models.wide_resnet import WideResNet

__all__ = ["SmallCNN", "WideResNet", "build_model"]


def build_model(config: Model, *, classes: int, channels: int, size: int, seed: int) -> nn.Module:
    """Build a classifier with weights that depend on the seed alone.

    Args:
        config: Name and size.
        classes: Number of classes.
        channels: Channels of the images.
        size: Side of the images in pixels.
        seed: Seed of the initial weights; the global generators are left as they were.

    Returns:
        The model, on the CPU.

    Raises:
        ExperimentError: If there is no such model, or it cannot be built.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if config.name == "small-cnn":
            return SmallCNN(classes, channels, size, config.width, config.depth)
        if wide := re.fullmatch(r"wrn-(\d+)-(\d+)", config.name):
            try:
                return WideResNet(int(wide[1]), int(wide[2]), classes, channels)
            except ValueError as error:
                raise ExperimentError(f"model.name = {config.name}: {error}") from error
        if config.name.startswith("torchvision:"):
            return _torchvision(config, classes)
    raise unknown("model", config.name, ["small-cnn", "wrn-28-10", "wrn-16-4", "wrn-10-1", "torchvision:resnet18"])


def _torchvision(config: Model, classes: int) -> nn.Module:
    from torchvision import models

    name = config.name.removeprefix("torchvision:")
    names = models.list_models(module=models)
    if name not in names:
        raise unknown("model", config.name, [f"torchvision:{known}" for known in names])
    if not config.pretrained:
        model: nn.Module = models.get_model(name, weights=None, num_classes=classes)
        return model
    try:
        model = models.get_model(name, weights="DEFAULT")
    except OSError as error:
        raise ExperimentError(f"cannot download the weights of {config.name}: {error}") from error
    path, head = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    if head.out_features != classes:
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Linear(head.in_features, classes))
    return model
