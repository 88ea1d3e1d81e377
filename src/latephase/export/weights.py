"""safetensors: the weights alone, under the model's own keys. Names and raw bytes; nothing in it can be run.

The format has no checksum of its own, so one goes into the file's metadata, which other programs pass over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn
from torch.func import functional_call

from latephase.checked_files import digest
from latephase.errors import DamagedFileError, LatePhaseValueError

_DIGEST = "latephase.sha256"


def serialised(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as the content of a safetensors file.

    Args:
        state: The state dict; tensors that share memory are written once each.

    Returns:
        The bytes.
    """
    own = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    return safetensors.torch.save(own, metadata={"format": "pt", _DIGEST: digest(own)})


def deserialised(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file, of ours or of another program's.

    Args:
        path: The file.

    Returns:
        Its tensors, on the CPU.

    Raises:
        DamagedFileError: It is no whole safetensors file, or not what its checksum was made of. Files of other programs
            have none.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            stated = (file.metadata() or {}).get(_DIGEST)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except Exception as error:  # of a damaged header its reader, and torch, complain in several ways
        reason = " ".join(str(error).split())[:200]
        raise DamagedFileError(f"cannot read {path} as safetensors; it may be truncated ({reason})") from error
    if stated is not None and digest(state) != stated:
        raise DamagedFileError(
            f"{path} is damaged: its tensors are not those that its checksum was made of (a program that changes them "
            f"has to drop {_DIGEST} from the metadata)"
        )
    return state


def write(model: nn.Module, args: tuple[Any, ...], path: Path, dynamic: Any) -> str:
    """See `Format.write`."""
    path.write_bytes(serialised(model.state_dict()))
    return ""


def read(path: Path, model: nn.Module) -> Callable[..., Any]:
    """See `Format.read`.

    Raises:
        LatePhaseValueError: The keys of the file are not those of the model.
    """
    state = deserialised(path)
    odd = sorted(state.keys() ^ model.state_dict().keys())
    if odd:
        raise LatePhaseValueError(f"{path} and {type(model).__name__} differ in the keys {', '.join(odd[:5])}")
    return partial(_call, model, state)


def _call(model: nn.Module, state: dict[str, Tensor], *args: Any) -> Any:
    # Ties are in the file as equal tensors.
    return functional_call(model, state, args, tie_weights=False)
