"""safetensors: the weights alone, under the model's own keys. Names and raw bytes; nothing in it can be run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn
from torch.func import functional_call

from latephase.errors import LatePhaseValueError


def serialised(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as the content of a safetensors file.

    Args:
        state: The state dict; tensors that share memory are written once each.

    Returns:
        The bytes.
    """
    own = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    return safetensors.torch.save(own, metadata={"format": "pt"})


def write(model: nn.Module, args: tuple[Any, ...], path: Path, dynamic: Any) -> str:
    """See `Format.write`."""
    path.write_bytes(serialised(model.state_dict()))
    return ""


def read(path: Path, model: nn.Module) -> Callable[..., Any]:
    """See `Format.read`.

    Raises:
        LatePhaseValueError: The keys of the file are not those of the model.
    """
    state = safetensors.torch.load_file(path)
    odd = sorted(state.keys() ^ model.state_dict().keys())
    if odd:
        raise LatePhaseValueError(f"{path} and {type(model).__name__} differ in the keys {', '.join(odd[:5])}")
    return partial(_call, model, state)


def _call(model: nn.Module, state: dict[str, Tensor], *args: Any) -> Any:
    # Ties are in the file as equal tensors.
    return functional_call(model, state, args, tie_weights=False)
