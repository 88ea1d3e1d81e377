"""Models: a small CNN, wide ResNets, PyramidNets, torchvision's classifiers; an LSTM and a transformer for text."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import nn

from latephase.experiments.config import Model
from latephase.experiments.errors import ExperimentError, unknown
from latephase.experiments.models.initial import load_weights, published_model
from latephase.experiments.models.lstm import CharLSTM
from latephase.experiments.models.pyramidnet import PyramidNet
from latephase.experiments.models.small_cnn import SmallCNN
from latephase.experiments.models.transformer import CharTransformer
from latephase.experiments.models.wide_resnet import WideResNet

__all__ = [
    "CharLSTM",
    "CharTransformer",
    "PyramidNet",
    "SmallCNN",
    "WideResNet",
    "build_model",
    "build_text_model",
]


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
    return _seeded(lambda: _build(config, classes, channels, size), config, seed)


def build_text_model(config: Model, vocabulary: int, seed: int) -> nn.Module:
    """Build a model that predicts the next character, and whose weights depend on the seed alone or are given.

    Its `forward(tokens, state=None)` returns logits and the state to go on from, which is None for a transformer.

    Args:
        config: Name, and the weights to start from.
        vocabulary: Number of characters.
        seed: Seed of the initial weights; the global generators are left as they were.

    Returns:
        The model, on the CPU.

    Raises:
        ExperimentError: If there is no such model for text, it cannot be built, or the weights to start from are not
            its own.
    """
    return _seeded(lambda: _build_text(config, vocabulary), config, seed)


def _seeded(build: Callable[[], nn.Module], config: Model, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
    if config.weights is not None:
        load_weights(model, config.weights)
    return model


def _build_text(config: Model, vocabulary: int) -> nn.Module:
    name = config.name
    if config.pretrained:
        raise ExperimentError(f"model.pretrained = {config.pretrained} needs a model of torchvision, not {name}")
    try:
        if lstm := re.fullmatch(r"lstm-(\d+)", name):
            return CharLSTM(vocabulary, int(lstm[1]))
        if transformer := re.fullmatch(r"transformer-(\d+)-(\d+)", name):
            return CharTransformer(vocabulary, int(transformer[1]), int(transformer[2]))
    except ValueError as error:
        raise ExperimentError(f"model.name = {name}: {error}") from error
    raise unknown("model for text", name, ["lstm-500", "transformer-3-96", "transformer-6-384"])


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
