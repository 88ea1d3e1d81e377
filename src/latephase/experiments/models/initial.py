"""Weights to start from: published ones, or those of a safetensors file."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from latephase.experiments.errors import ExperimentError, unknown
from latephase.experiments.weights_file import read_weights


def load_weights(model: nn.Module, path: str) -> None:
    """Start a model from a file such as the `model.safetensors` of a run.

    Every tensor must be in the file and nothing else. Only the head, the last linear layer, stays as it is where the
    file's has another shape, for other classes.

    Args:
        model: The model; changed.
        path: The safetensors file.

    Raises:
        ExperimentError: If the file cannot be read, or is that of another model.
    """
    if not Path(path).is_file():
        raise ExperimentError(f"there is no file {path} of model.weights")
    there = read_weights(Path(path), "model.weights: ")
    own = model.state_dict()
    head = [f"{last_linear(model)}.{part}" for part in ("weight", "bias")]
    # Another number of classes: rows of the weight and of the bias, the same inputs.
    if any(_is_other_head(own, there, name) for name in head):
        there |= {name: own[name] for name in head if name in own}
    wrong = [
        *(f"{name} is missing" for name in own if name not in there),
        *(f"{name} is not in the model" for name in there if name not in own),
        *(
            f"{name} is {_shape(there[name])} there, {_shape(own[name])} here"
            for name in own
            if name in there and there[name].shape != own[name].shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more like it" if len(wrong) > 1 else ""
        raise ExperimentError(f"model.weights = {path} holds the weights of another model: {wrong[0]}{more}")
    model.load_state_dict(there)


def published_model(name: str, pretrained: bool | str, classes: int) -> nn.Module:
    """One of torchvision's models with published weights, downloaded if need be.

    Args:
        name: Its name.
        pretrained: Name of the weights, such as `IMAGENET1K_V1`; true takes the newest.
        classes: Number of classes; the head is replaced if the published one has others.

    Returns:
        The model.

    Raises:
        ExperimentError: If there are no such weights, or they cannot be downloaded.
    """
    from torchvision import models

    weights = "DEFAULT" if pretrained is True else str(pretrained)
    published = models.get_model_weights(name)
    known = [str(w.name) for w in published]
    if weights != "DEFAULT" and weights not in known:
        raise unknown(f"weights of {name}, model.pretrained =", weights, ["true", *known])
    try:
        # torchvision reads its files as pickles, one that lies in its cache without a look at its checksum. After this
        # the file is there, and holds tensors alone.
        published[weights].get_state_dict(check_hash=True, weights_only=True)
        model: nn.Module = models.get_model(name, weights=weights)
    except UnpicklingError as error:
        reason = " ".join(str(error).split())[:120]
        raise ExperimentError(
            f"the weights {weights} of torchvision:{name} in {torch.hub.get_dir()} hold more than tensors and are not "
            f"loaded; remove them there to have them downloaded again ({reason})"
        ) from error
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ExperimentError(f"cannot download the weights {weights} of torchvision:{name}: {reason}") from error
    path = last_linear(model)
    head = model.get_submodule(path)
    assert isinstance(head, nn.Linear)
    if head.out_features != classes:
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Linear(head.in_features, classes))
    return model


def last_linear(model: nn.Module) -> str:
    """The head of a classifier.

    Args:
        model: The model.

    Returns:
        Dotted name of its last linear layer.

    Raises:
        ExperimentError: If it has none.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ExperimentError(f"{type(model).__name__} has no linear layer that could be its head")
    return names[-1]


def _is_other_head(own: dict[str, Tensor], there: dict[str, Tensor], name: str) -> bool:
    if name not in own or name not in there or own[name].dim() != there[name].dim():
        return False
    return own[name].shape != there[name].shape and own[name].shape[1:] == there[name].shape[1:]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
