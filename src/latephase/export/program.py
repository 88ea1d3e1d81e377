"""`torch.export`: the model as one graph with its weights, in a `.pt2` file.

The file is a zip archive of JSON (the graph) and raw bytes (the weights); no class of the model is needed to read it.
The example inputs lie in it as `torch.save` writes them, and a hostile file could have weights that are pickles: what
`torch.load(weights_only=True)` refuses torch itself would then unpickle, and run. So it is refused before.
"""

from __future__ import annotations

import inspect
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

from latephase.checked_files import check_archive
from latephase.errors import ForeignFileError
from latephase.export.ensemble import Ensemble


def batch_is_dynamic(args: Any) -> Any:
    """The `dynamic_shapes` with which the first dimension of every input may have any one size.

    Args:
        args: The inputs, a tuple that may be nested.

    Returns:
        The same tree with `{0: batch}` in place of each tensor.

    Example:
        >>> batch_is_dynamic((torch.zeros(4, 3), None))
        ({0: Dim('batch', min=0)}, None)
    """
    batch = Dim("batch")
    return tree_map(lambda leaf: {0: batch} if isinstance(leaf, Tensor) and leaf.ndim else None, args)


def trace(model: nn.Module, args: tuple[Any, ...], dynamic: Any, strict: bool = False) -> ExportedProgram:
    """The program of a model.

    In an `Ensemble` of which no dimension is dynamic every operator runs once for all members. Torch's rules for vmap
    fix the batch's size (those of convolution, normalisation and embedding among them), so where the size is to be
    dynamic the members follow one another in the graph; what they share is in the file once all the same.

    Args:
        model: The model, in eval mode.
        args: Example inputs.
        dynamic: As `torch.export` takes `dynamic_shapes`.
        strict: Trace with TorchDynamo, from Python's bytecode, rather than by running the model.

    Returns:
        The program.
    """
    with torch.no_grad(), calm():
        if not isinstance(model, Ensemble):
            return _program(model, args, dynamic, strict)
        if model.vectorised and dynamic is None:
            return _program(_Resolved(model, args), args, None, strict)
        with model.one_after_the_other():
            return _program(model, args, dynamic, strict)


def _program(model: nn.Module, args: tuple[Any, ...], dynamic: Any, strict: bool) -> ExportedProgram:
    parameters = inspect.signature(model.forward).parameters.values()
    if dynamic is not None and any(each.kind is each.VAR_POSITIONAL for each in parameters):
        dynamic = (dynamic,)  # torch takes `*args` for one argument, which is a tuple
    return torch.export.export(model, args, dynamic_shapes=dynamic, strict=strict)


class _Resolved(nn.Module):
    """An ensemble as the operators that one pass of it runs: `torch.export` itself cannot trace all of vmap's rules."""

    def __init__(self, ensemble: Ensemble, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.shared, self.members = ensemble.shared, ensemble.members
        names = list(self._tensors())

        def run(tensors: list[Tensor], given: tuple[Any, ...]) -> Any:
            return functional_call(ensemble, dict(zip(names, tensors, strict=True)), given, tie_weights=False)

        self._graph = make_fx(run)(list(self._tensors().values()), args)

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def forward(self, *args: Any) -> Any:
        return self._graph(list(self._tensors().values()), args)


@contextmanager
def calm() -> Iterator[None]:
    """Context without what torch says of its own recurrent layers and functions while it traces them.

    Yields:
        Nothing.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"The tensor attributes? .*_flat_weights", category=UserWarning)
        warnings.filterwarnings("ignore", message="_check_is_size will be removed", category=FutureWarning)
        yield


def write(model: nn.Module, args: tuple[Any, ...], path: Path, dynamic: Any) -> str:
    """See `Format.write`."""
    torch.export.save(trace(model, args, dynamic), path)
    return ""


def _check_pickles(path: Path) -> None:
    """Refuse an archive with a pickle in it that holds more than tensors and plain values."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickled = {name for name in names if name.endswith(".pt")}
        try:
            for config in (name for name in names if name.endswith("_config.json")):
                for entry in json.loads(archive.read(config)).get("config", {}).values():
                    if entry.get("use_pickle"):
                        pickled.add(str(PurePosixPath(config).parent / entry["path_name"]))
            for name in sorted(pickled):
                torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
        except Exception as error:  # torch's reader complains in many ways
            raise ForeignFileError(
                f"{path} is not what latephase writes: it holds more than tensors, plain values and a graph; not "
                f"loaded ({' '.join(str(error).split())[:120]})"
            ) from error


def read(path: Path, model: nn.Module) -> Callable[..., Any]:
    """See `Format.read`."""
    check_archive(path)
    _check_pickles(path)
    module: Callable[..., Any] = torch.export.load(path).module()
    return module
