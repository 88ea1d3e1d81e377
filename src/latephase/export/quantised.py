"""Quantisation by torchao: the weights of Linear layers in int8, one scale for each output, in a `.pt2` file.

Weights alone are quantised: activations stay in floating point, so that no calibration data are needed. Convolutions,
recurrent layers and embeddings keep their precision.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latephase.errors import LatePhaseValueError
from latephase.export import program

_said = logging.getLogger("torch.utils._pytree")
_level = _said.level
with warnings.catch_warnings():
    # Its code has an escape that Python complains of when it first compiles it, and a call that torch complains of.
    warnings.filterwarnings("ignore", message="invalid escape sequence")
    _said.setLevel(logging.ERROR)
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import-untyped]
    from torchao.utils import unwrap_tensor_subclass  # type: ignore[import-untyped]
_said.setLevel(_level)


def quantise(model: nn.Module) -> tuple[nn.Module, float]:
    """A copy of a model with int8 weights.

    Args:
        model: The model; it stays as it is.

    Returns:
        The copy, and which share of the weights is quantised.

    Raises:
        LatePhaseValueError: The model has no Linear layer.
    """
    layers = {m.weight for m in model.modules() if type(m) is nn.Linear}
    if not layers:
        raise LatePhaseValueError(
            f"format: quantised needs nn.Linear layers, of which {type(model).__name__} has none; use another format"
        )
    share = sum(p.numel() for p in layers) / sum(p.numel() for p in model.parameters())
    twin = copy.deepcopy(model)
    quantize_(twin, Int8WeightOnlyConfig(set_inductor_config=False))
    return twin, share


def write(model: nn.Module, args: tuple[Any, ...], path: Path, dynamic: Any) -> str:
    """See `Format.write`."""
    twin, share = quantise(model)
    # A file of tensors of torchao's own class would have to be pickled; as plain tensors it is read without torchao.
    torch.export.save(program.trace(unwrap_tensor_subclass(twin), args, dynamic), path)
    return f"{share:.0%} of the weights in int8"


def read(path: Path, model: nn.Module) -> Callable[..., Any]:
    """See `Format.read`."""
    return program.read(path, model)
