"""TorchScript, for programs that load models with `torch.jit.load`; torch itself calls it deprecated.

The file is a zip archive of the model's code in TorchScript's own language and of its data. The data are in pickle's
notation, but TorchScript's reader knows a few fixed kinds of objects and imports nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latephase.checked_files import check_archive
from latephase.errors import LatePhaseValueError

# Bytes that the code in a file may have, which is compressed.
_CODE = 2**26


def write(model: nn.Module, args: tuple[Any, ...], path: Path, dynamic: Any) -> str:
    """See `Format.write`: scripted, or where its code cannot be compiled, traced."""
    with _deprecated(), torch.no_grad():
        try:
            script, note = torch.jit.script(model), ""
        except Exception as error:  # its compiler fails in many ways
            script, reason = _traced(model, args), str(error).strip().splitlines()[0]
            note = f"traced, branches are those of the example: its code is no TorchScript ({reason})"
        torch.jit.save(script, str(path))
    return note


def _traced(model: nn.Module, args: tuple[Any, ...]) -> Any:
    try:
        return torch.jit.trace(model, args, check_trace=False)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LatePhaseValueError(
            f"format: torchscript can neither script nor trace {type(model).__name__} ({reason}); use export or onnx"
        ) from error


def read(path: Path, model: nn.Module) -> Callable[..., Any]:
    """See `Format.read`."""
    check_archive(path, room=_CODE)
    with _deprecated():
        module: Callable[..., Any] = torch.jit.load(str(path))
    return module


@contextmanager
def _deprecated() -> Iterator[None]:
    """Torch warns at each of these calls that TorchScript is to go."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is", category=kind)
        yield
