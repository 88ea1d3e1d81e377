"""What became of the collapsed model, in numbers: keys, shapes, dtypes, outputs, what deployment tools make of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latephase.errors import LatePhaseError
from latephase.export.files import Written, write
from latephase.export.formats import format_of
from latephase.export.outputs import Agreement, fewer
from latephase.stage import evaluating


@dataclass(frozen=True)
class Verification:
    """The collapsed model beside a fresh one of the original code.

    Attributes:
        tensors: How many tensors the original's state dict holds.
        missing: Keys that the collapsed model lacks.
        unexpected: Keys that the original does not have.
        order: Whether the keys come in the same order.
        shapes: Tensors of another shape: "original's, collapsed model's" by key.
        dtypes: Tensors of another dtype, in the same way.
        load: Why the original refuses the collapsed model's state dict; None where it loads strictly.
        loaded: Outputs of the collapsed model against those of the original with its weights; None if it did not load.
        collapse: Outputs before the collapse against those after it; None where none were given.
        files: For each format a file, and its outputs against the collapsed model's, or why there is none.
    """

    tensors: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    order: bool
    shapes: dict[str, str]
    dtypes: dict[str, str]
    load: str | None
    loaded: Agreement | None
    collapse: Agreement | None
    files: dict[str, Written | str]

    def __str__(self) -> str:
        keys = "the same keys in the same order" if self.order else "the same keys in another order"
        if self.missing or self.unexpected:
            keys = f"keys missing: {_listed(self.missing)}; unexpected: {_listed(self.unexpected)}"
        lines = [f"state dict: {self.tensors} tensors, {keys}"]
        for what, odd in (("shapes", self.shapes), ("dtypes", self.dtypes)):
            lines.append(f"{what}: {_listed([f'{k} ({v})' for k, v in odd.items()]) if odd else 'the same'}")
        lines.append(f"strict load into the original: {self.load or 'yes'}")
        if self.loaded is not None:
            lines.append(f"outputs of the original with these weights differ by {self.loaded}")
        if self.collapse is not None:
            lines.append(f"outputs before and after the collapse differ by {self.collapse}")
        for name, file in self.files.items():
            lines.append(f"{name}: {file if isinstance(file, str) else file.summary}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values.

        Returns:
            Numbers, strings, lists and dicts, ready for JSON.
        """
        plain = {**asdict(self), "missing": list(self.missing), "unexpected": list(self.unexpected)}
        plain["files"] = {k: v if isinstance(v, str) else v.to_dict() for k, v in self.files.items()}
        return plain


def verify(
    original: nn.Module,
    collapsed: nn.Module,
    args: tuple[Any, ...],
    *,
    before: Any = None,
    formats: Sequence[str] = ("export", "onnx"),
) -> Verification:
    """Compare a collapsed model with a fresh one of the original code, and hand it to deployment tools.

    Nothing is raised for what does not agree: the report says what, and by how much.

    Args:
        original: A fresh model, as the user's code makes it; its weights are the same again afterwards.
        collapsed: What `late.collapse()` returned.
        args: Inputs of at least two samples, better three.
        before: What the averaged model, `model.eval()`, returned for them before the collapse.
        formats: Formats to write to a folder that is removed again; for each, outputs are compared at this number of
            samples, with graphs that were traced at one less.

    Returns:
        The report; `print` it.

    Raises:
        LatePhaseValueError: No such format.
        ModuleNotFoundError: A package of the extra `export` is not installed, and a format needs it.

    Example:
        >>> import latephase
        >>> def network():
        ...     return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> model, x = network(), torch.randn(5, 3)
        >>> late = latephase.LatePhase(model, members=2)
        >>> _ = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> late.start()
        >>> before = model.eval()(x)
        >>> report = verify(network(), late.collapse(), (x,), before=before, formats=())
        >>> report.load is None, report.collapse.largest
        (True, 0.0)
    """
    for name in formats:
        format_of(name)
    ours, theirs = collapsed.state_dict(), original.state_dict()
    common = [key for key in theirs if key in ours]
    with evaluating(collapsed), torch.no_grad():
        after = collapsed(*args)
    load, loaded = _load(original, ours, args, after)
    return Verification(
        tensors=len(theirs),
        missing=tuple(key for key in theirs if key not in ours),
        unexpected=tuple(key for key in ours if key not in theirs),
        order=common == [key for key in ours if key in theirs],
        shapes=_odd({k: (tuple(theirs[k].shape), tuple(ours[k].shape)) for k in common}),
        dtypes=_odd({k: (theirs[k].dtype, ours[k].dtype) for k in common}),
        load=load,
        loaded=loaded,
        collapse=None if before is None else Agreement.of(before, after),
        files=_files(collapsed, args, formats),
    )


def _load(
    original: nn.Module, state: dict[str, Any], args: tuple[Any, ...], after: Any
) -> tuple[str | None, Agreement | None]:
    """Load into the original and compare; its own weights come back."""
    own = {key: value.clone() for key, value in original.state_dict().items()}
    try:
        original.load_state_dict(state, strict=True)
        with evaluating(original), torch.no_grad():
            return None, Agreement.of(original(*args), after)
    except RuntimeError as error:
        return " ".join(str(error).split()), None
    finally:
        original.load_state_dict(own)


def _files(model: nn.Module, args: tuple[Any, ...], formats: Sequence[str]) -> dict[str, Written | str]:
    found: dict[str, Written | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in formats:
            path = Path(folder) / f"model{format_of(name).suffix}"
            try:
                found[name] = write(model, fewer(args), path, name, check=args)
            except LatePhaseError as error:
                found[name] = str(error)
    return found


def _odd(pairs: dict[str, tuple[Any, Any]]) -> dict[str, str]:
    return {key: f"{a}, {b}" for key, (a, b) in pairs.items() if a != b}


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return shown if len(names) <= 5 else f"{shown}, ... ({len(names) - 5} more)"
