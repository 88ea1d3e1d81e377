"""The formats a model can be handed over in. Each is one module with `write` and `read`, imported when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from latephase.errors import LatePhaseError, LatePhaseValueError


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: What it is asked for by.
        suffix: How the names of its files end.
        what: What is in the file, and what reads it.
        module: The module of this package that writes and reads it.
    """

    name: str
    suffix: str
    what: str
    module: str

    def load(self) -> None:
        """Import what the format needs.

        Raises:
            ModuleNotFoundError: A package of the extra `export` is not installed.
        """
        self._module()

    def write(self, model: nn.Module, args: tuple[Any, ...], path: Path, dynamic: Any) -> str:
        """Write a model.

        Args:
            model: The model, in eval mode.
            args: Example inputs, which graphs are traced with.
            path: The file.
            dynamic: Which dimensions of the inputs may have other sizes, as `torch.export` takes `dynamic_shapes`.

        Returns:
            What there is to know about the file; empty if it is as expected.

        Raises:
            LatePhaseValueError: The model has nothing that the format could hold.
        """
        return str(self._module().write(model, args, path, dynamic))

    def read(self, path: Path, model: nn.Module) -> Callable[..., Any]:
        """Read a file back.

        Args:
            path: The file.
            model: A model of the class that was written, for formats that hold weights alone; it is not changed.

        Returns:
            What predicts with the file's content: takes the model's inputs and returns its outputs, or their tensors.

        Raises:
            LatePhaseError: The file is damaged, or of another kind.
            ModuleNotFoundError: A package of the extra `export` is not installed.
        """
        module = self._module()
        try:
            reader: Callable[..., Any] = module.read(path, model)
        except LatePhaseError:
            raise
        except Exception as error:  # each format's own reader complains in its own way, of damage in many
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise LatePhaseError(
                f"{path} cannot be read as {self.name}: it is damaged or no such file ({reason}); export it again"
            ) from error
        return reader

    def _module(self) -> Any:
        return importlib.import_module(f"{__package__}.{self.module}")


FORMATS = {
    each.name: each
    for each in (
        Format("safetensors", ".safetensors", "weights alone, for the model's own class", "weights"),
        Format("export", ".pt2", "a torch.export program: graph and weights", "program"),
        Format("onnx", ".onnx", "an ONNX graph with its weights, for onnxruntime and others", "onnx"),
        Format("torchscript", ".pt", "a TorchScript archive, for torch.jit.load in Python and C++", "torchscript"),
        Format("quantised", "-int8.pt2", "a torch.export program with int8 weights in its Linear layers", "quantised"),
        Format("aoti", "-aoti.pt2", "compiled machine code by AOTInductor, for this kind of processor", "aoti"),
    )
}
"""Every format by name."""


def format_of(name: str) -> Format:
    """The format of a name.

    Args:
        name: The name.

    Returns:
        The format.

    Raises:
        LatePhaseValueError: There is none; the message lists them.

    Example:
        >>> format_of("onnx").suffix
        '.onnx'
    """
    if name not in FORMATS:
        raise LatePhaseValueError(f"format: {name!r}; use one of {', '.join(FORMATS)}")
    return FORMATS[name]
