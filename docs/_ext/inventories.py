"""Links to the references of Python, PyTorch and NumPy without fetching their inventories.

Every name below stands in a signature of the library or in a docstring of it. From them intersphinx gets inventories
that are written when the build begins, so that a type that is named and not known is still a warning.
"""

import zlib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

PYTHON = ("https://docs.python.org/3/", "library/{page}.html#$")
TORCH = ("https://docs.pytorch.org/docs/stable/", "{page}.html#$")
NUMPY = ("https://numpy.org/doc/stable/", "reference/{page}.html#$")

# Page of the reference: the names on it.
NAMES: dict[str, tuple[tuple[str, str], dict[str, str]]] = {
    "python": (
        PYTHON,
        {
            "functions": "int float bool str bytes tuple list dict set frozenset object type range complex slice",
            "constants": "None",
            "exceptions": "Exception RuntimeError ValueError TypeError KeyError OSError IndexError ArithmeticError "
            "BaseException NotImplementedError FileNotFoundError ModuleNotFoundError",
            "collections.abc": "collections.abc.Callable collections.abc.Iterable collections.abc.Iterator "
            "collections.abc.Mapping collections.abc.Sequence collections.abc.Sized collections.abc.Generator "
            "collections.abc.MutableMapping Callable Iterable Iterator Mapping Sequence",
            "collections": "collections.OrderedDict OrderedDict",
            "typing": "typing.Any typing.Literal typing.NamedTuple typing.Protocol Any Literal",
            "pathlib": "pathlib.Path Path",
            "os": "os.PathLike PathLike",
            "datetime": "datetime.timedelta",
            "contextlib": "contextlib.AbstractContextManager AbstractContextManager",
            "types": "types.ModuleType",
        },
    ),
    "torch": (
        TORCH,
        {
            "tensors": "torch.Tensor Tensor torch._tensor.Tensor",
            "tensor_attributes": "torch.dtype torch.device",
            "generated/torch.nn.Module": "torch.nn.Module nn.Module torch.nn.modules.module.Module Module",
            "generated/torch.nn.parameter.Parameter": "torch.nn.Parameter torch.nn.parameter.Parameter nn.Parameter",
            "generated/torch.Generator": "torch.Generator torch._C.Generator",
            "optim": "torch.optim.Optimizer torch.optim.optimizer.Optimizer Optimizer",
            "data": "torch.utils.data.DataLoader torch.utils.data.dataset.Dataset",
            "distributed": "torch.distributed.ProcessGroup torch.distributed.distributed_c10d.ProcessGroup "
            "torch._C._distributed_c10d.ProcessGroup dist.ProcessGroup",
            "distributed.checkpoint": "torch.distributed.checkpoint.stateful.Stateful "
            "torch.distributed.checkpoint.storage.StorageReader StorageReader",
            "export": "torch.export.ExportedProgram",
        },
    ),
    "numpy": (
        NUMPY,
        {
            "generated/numpy.ndarray": "numpy.ndarray np.ndarray",
            "generated/numpy.dtype": "numpy.dtype",
            "typing": "numpy.typing.ArrayLike numpy.typing.NDArray ArrayLike NDArray",
            "arrays.scalars": "numpy.float64 numpy.floating np.float64 numpy.int64 numpy.integer np.integer",
            "random/generator": "numpy.random.Generator np.random.Generator numpy.random._generator.Generator",
        },
    ),
}


def inventory(project: str, uri: str, pages: dict[str, str]) -> bytes:
    """An inventory of version 2: every name as a class, a function and data, whatever asks for it."""
    lines = [f"{name} py:class 1 {uri.format(page=page)} -" for page, names in pages.items() for name in names.split()]
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n# compressed with zlib\n"
    return head.encode() + zlib.compress("\n".join([*lines, ""]).encode())


def _write(app: Sphinx, config: Config) -> None:
    mapping = {}
    folder = Path(app.doctreedir) / "inventories"
    folder.mkdir(parents=True, exist_ok=True)
    for project, ((base, uri), pages) in NAMES.items():
        path = folder / f"{project}.inv"
        path.write_bytes(inventory(project, uri, pages))
        mapping[project] = (base, str(path))
    config["intersphinx_mapping"] = mapping


def setup(app: Sphinx) -> dict[str, Any]:
    """Hook into the build."""
    app.connect("config-inited", _write, priority=400)  # before intersphinx reads the mapping
    return {"parallel_read_safe": True}
