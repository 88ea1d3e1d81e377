"""Write a model to a file, read the file back, and say how its outputs compare."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latephase.errors import LatePhaseError, LatePhaseValueError
from latephase.export.ensemble import Ensemble
from latephase.export.formats import format_of
from latephase.export.outputs import Agreement, tensors_of
from latephase.export.program import batch_is_dynamic
from latephase.stage import evaluating
from latephase.whole_files import flush, put_in_place


@dataclass(frozen=True)
class Written:
    """A file, and what it predicts.

    Attributes:
        path: The file.
        format: Its format.
        bytes: Its size, with a second file of weights if it has one.
        outputs: The model's outputs against those of the file, read back.
        note: What else there is to know about it; may be empty.
        sha256: Of the file, 64 hexadecimal digits; not of a second file of weights.
    """

    path: Path
    format: str
    bytes: int
    outputs: Agreement
    note: str
    sha256: str

    @property
    def summary(self) -> str:
        """Size, comparison and note in one line."""
        text = f"{self.bytes:,} bytes; outputs differ by {self.outputs}"
        return f"{text} ({self.note})" if self.note else text

    def __str__(self) -> str:
        return f"{self.path}: {self.summary}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values.

        Returns:
            Numbers, strings and dicts, ready for JSON.
        """
        return {**asdict(self), "path": str(self.path)}


def write(
    model: nn.Module,
    args: tuple[Any, ...],
    path: str | Path,
    format: str = "export",
    *,
    check: tuple[Any, ...] | None = None,
    dynamic: Any = True,
) -> Written:
    """Write a model to a file and compare what the file predicts with what the model does.

    The file is written under another name, read back and compared, and then takes its place: whatever goes wrong
    before, nothing is at `path` that was not there.

    Args:
        model: The collapsed model, a member, an `Ensemble` or any other module. It is written in eval mode, and every
            module in it is in its old mode afterwards.
        args: Example inputs, with more than one sample; graphs are traced with them.
        path: The file.
        format: One of `FORMATS`.
        check: Inputs to compare with; None takes the example. Another number of samples tests that the graph takes any.
        dynamic: True lets the first dimension of every input have any one size, False none; or what `torch.export`
            takes as `dynamic_shapes`. In the graph of an `Ensemble` the members follow one another, unless it is
            False: then each operator runs once for all of them.

    Returns:
        The file's size and the comparison.

    Raises:
        LatePhaseValueError: No such format, or the model has nothing that it could hold.
        LatePhaseError: The exporter cannot write this model (the message has its reason), or the model is under a late
            phase, whose members a file would not have.
        ModuleNotFoundError: A package of the extra `export` is not installed.

    Example:
        >>> import tempfile
        >>> folder, x = tempfile.TemporaryDirectory(), torch.zeros(2, 3)
        >>> written = write(nn.Linear(3, 2), (x,), f"{folder.name}/linear.safetensors", "safetensors")
        >>> folder.cleanup()
        >>> written.outputs.largest
        0.0
    """
    chosen, path = format_of(format), Path(path)
    spec = batch_is_dynamic(args) if dynamic is True else (None if dynamic is False else dynamic)
    path.parent.mkdir(parents=True, exist_ok=True)
    if any(hasattr(module.__dict__.get("train"), "members_share_the_model") for module in model.modules()):
        raise LatePhaseError("write: members share this model; collapse() the phase first, or write an Ensemble of it")
    if dynamic is True and any(tensor.ndim and len(tensor) == 1 for tensor in tensors_of(args)):
        raise LatePhaseValueError("args: one sample; a graph for any number of them is traced with two or more")
    inputs = args if check is None else check
    with evaluating(model), torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as made:
        beside = Path(made) / path.name
        expected = model(*inputs)
        try:
            note = chosen.write(model, args, beside, spec)
            if isinstance(model, Ensemble) and format != "safetensors" and not (model.vectorised and spec is None):
                note = "; ".join(filter(None, [note, "the members follow one another in the graph"]))
        except (LatePhaseError, OSError, ImportError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise LatePhaseError(_refusal(format, model, error)) from error
        outputs = Agreement.of(expected, chosen.read(beside, model)(*inputs))
        size = sum(file.stat().st_size for file in Path(made).iterdir())
        # A second file of weights first: without the graph it is nothing.
        for file in sorted(Path(made).iterdir(), key=lambda file: file == beside):
            flush(file)
            put_in_place(file, path.with_name(file.name))
    with open(path, "rb") as whole:
        checksum = hashlib.file_digest(whole, "sha256").hexdigest()
    return Written(path, format, size, outputs, note, checksum)


def _refusal(name: str, model: nn.Module, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"format: {name} cannot hold {type(model).__name__} ({type(error).__name__}: {reason[:300]})"
