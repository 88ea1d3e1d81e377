"""What the library's source may and may not do: imports, prints, copies; and the examples in its docstrings run."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import latephase

ROOT = Path(latephase.__file__).parent
OUTER = {"cli", "__main__", "experiments", "evaluation", "export", "integrations", "nqp"}
SOURCES = sorted(ROOT.rglob("*.py"))
CORE = [path for path in SOURCES if path.relative_to(ROOT).parts[0].removesuffix(".py") not in OUTER]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, anywhere in it."""
    package = ("latephase", *path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            found.add(".".join(part for part in (base, node.module or "") if part))
    return found


def calls(path: Path) -> set[str]:
    """The last name of everything that a file calls."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            target = node.func
            found.add(target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", ""))
    return found


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_imports_torch_and_the_standard_library_only(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imported(path)}
    assert tops - sys.stdlib_module_names <= {"torch", "latephase"}


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_arrows_point_one_way(path: Path) -> None:
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] != "latephase" or len(parts) < 2 or parts[1] not in OUTER, name


def test_the_reference_imports_nothing_of_the_fast_path() -> None:
    assert not [name for name in imported(ROOT / "reference.py") if name.startswith("latephase")]
    fast = [path for path in CORE if path.name not in ("reference.py", "__init__.py")]
    assert not [path for path in fast if any("reference" in name for name in imported(path))]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_print_and_no_exit(path: Path) -> None:
    outer = path.relative_to(ROOT).parts[0] in ("cli.py", "__main__.py")
    forbidden = {"print", "breakpoint"} if outer else {"print", "breakpoint", "exit", "quit", "_exit"}
    tree = ast.parse(path.read_text())
    plain = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not plain & forbidden
    raised = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise) and n.exc is not None]
    names = {getattr(getattr(r, "func", r), "id", "") for r in raised}
    assert outer or "SystemExit" not in names


@pytest.mark.parametrize("path", [p for p in CORE if p.name != "reference.py"], ids=name_of)
def test_no_copy_of_the_users_model_and_no_pickle(path: Path) -> None:
    assert not calls(path) & {"deepcopy", "eval", "exec"}
    assert "copy" not in imported(path)
    assert not imported(path) & {"pickle", "dill", "cloudpickle"}


def test_files_stay_small() -> None:
    long = {name_of(path): lines for path in CORE if (lines := len(path.read_text().splitlines())) > 350}
    assert not long


EXTRAS = ["numpy", "scipy", "sklearn", "torchvision", "torchmetrics", "lightning", "pytorch_lightning", "transformers"]
EXTRAS += ["curvlinops", "jsonargparse", "rich", "matplotlib", "safetensors", "pyarrow", "yaml", "PIL", "pandas"]

ALONE = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS!r}))  # None there: as if they were not installed
import torch
before = set(sys.modules)
import latephase
sys.stdout.write(" ".join(set(sys.modules) - before))
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
late = latephase.LatePhase(model, members=2)
optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
late.start()
for _ in range(4):
    optimizer.zero_grad()
    model(torch.randn(5, 3)).square().mean().backward()
    optimizer.step()
late.load_state_dict(late.state_dict())
late.predict(torch.randn(5, 3))
latephase.recompute_statistics(late.collapse(), [torch.randn(5, 3)])
"""


def test_the_core_works_where_only_torch_is_installed() -> None:
    """And it imports none of the extras, nor the outer parts of the package that need them."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    new = set(done.stdout.split())
    assert "latephase.phase" in new
    assert not {name for name in new if name.startswith(tuple(f"latephase.{outer}" for outer in OUTER))}


def modules() -> list[str]:
    inner = [f"latephase.{m.name}" for m in pkgutil.iter_modules([str(ROOT)]) if m.name not in OUTER]
    return [*inner, *(f"latephase.families.{m.name}" for m in pkgutil.iter_modules([str(ROOT / "families")]))]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_every_public_class_and_function_has_an_example_or_is_an_error() -> None:
    public = [getattr(latephase, name) for name in latephase.__all__ if name != "__version__"]
    for thing in public:
        assert thing.__doc__, thing
        if not issubclass(thing if isinstance(thing, type) else object, Exception) and thing is not latephase.Family:
            assert ">>>" in thing.__doc__, thing
