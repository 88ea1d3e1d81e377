"""Models: a small CNN, wide ResNets, PyramidNets, and every classifier of torchvision."""

from __future__ import annotations

import re

import torch
from torch import nn

from latephase.experiments.config import Model
from latephase.experiments.errors import ExperimentError, unknown
from latephase.experiments.models.initial import load_weights, published_model
from latephase.experiments.models.pyramidnet import PyramidNet
from latephase.experiments.models.small_cnn import SmallCNN
from latephase.experiments.models.wide_resnet import WideResNet

__all__ = ["PyramidNet", "SmallCNN", "WideResNet", "build_model"]


def build_model(config: Model, *, classes: int, channels: int, size: int, seed: int) -> nn.Module:
    """Build a classifier whose weights depend on the seed alone, or are those that the recipe starts from.

    Args:
        config: Name and size.
        classes: Number of classes.
        channels: Channels of the images.
        size: Side of the images in pixels.
        seed: Seed of the initial weights; the global generators are left as they were.

    Returns:
        The model, on the CPU.

    Raises:
        ExperimentError: If there is no such model, it cannot be built, or the weights to start from are not its own.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _build(config, classes, channels, size)
    if config.weights is not None:
        load_weights(model, config.weights)
    return model


def _build(config: Model, classes: int, channels: int, size: int) -> nn.Module:
    name = config.name
    if config.pretrained and not name.startswith("torchvision:"):
        raise ExperimentError(f"model.pretrained = {config.pretrained} needs a model of torchvision, not {name}")
    try:
        if name == "small-cnn":
            return SmallCNN(classes, channels, size, config.width, config.depth)
        if wide := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
            return WideResNet(int(wide[1]), int(wide[2]), classes, channels)
        if pyramid := re.fullmatch(r"pyramidnet-(\d+)-(\d+)", name):
            return PyramidNet(int(pyramid[1]), int(pyramid[2]), classes, channels)
    except ValueError as error:
        raise ExperimentError(f"model.name = {name}: {error}") from error
    if name.startswith("torchvision:"):
        return _torchvision(config, classes)
    known = ["small-cnn", "wrn-28-10", "wrn-16-4", "wrn-10-1", "pyramidnet-110-270", "torchvision:resnet18"]
    raise unknown("model", name, known)


def _torchvision(config: Model, classes: int) -> nn.Module:
    from torchvision import models

    name = config.name.removeprefix("torchvision:")
    names = models.list_models(module=models)
    if name not in names:
        raise unknown("model", config.name, [f"torchvision:{known}" for known in names])
    if config.pretrained:
        return published_model(name, config.pretrained, classes)
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    return model
