"""The page on hand-over and its example run."""

import ast
import doctest
import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

import latephase.export

ROOT = Path(__file__).parents[2]


def test_the_page() -> None:
    result = doctest.testfile(str(ROOT / "docs/export.md"), module_relative=False)
    assert result.attempted > 20
    assert result.failed == 0


@pytest.mark.parametrize("name", ["ensemble", "files", "formats", "outputs", "program", "verify"])
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"latephase.export.{name}"))
    assert result.attempted
    assert result.failed == 0


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples/export_model.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "strict load into the original: yes" in shown
    right = re.findall(r"([\d.]+)% of the test images right", shown)
    assert len(right) == 2
    assert all(float(share) > 90 for share in right)


def test_every_test_that_the_page_names_exists() -> None:
    here = Path(__file__).parent
    named = [word.strip("`") for word in (ROOT / "docs/export.md").read_text().split() if word.startswith("`test_")]
    assert len(named) > 8
    for each in named:
        file, _, test = each.partition("::")
        assert not test or f"def {test}(" in (here / file).read_text(), each


def test_the_package_imports_no_library_of_a_format() -> None:
    """Its own modules import each other, torch and the standard library; those of the formats are imported in use."""
    package = Path(latephase.export.__file__).parent
    lazy = {each.module for each in latephase.export.FORMATS.values()} - {"program"}
    files = {path.stem: path for path in package.glob("*.py")}
    assert lazy < set(files)
    for name in set(files) - lazy:
        tree = ast.parse(files[name].read_text())
        absolute = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        absolute |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert {each.partition(".")[0] for each in absolute} - sys.stdlib_module_names <= {"torch", "latephase"}, name
        assert not {f"latephase.export.{each}" for each in lazy} & absolute, name
