"""What the pages name exists: tests, files, and the targets of their links."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*/README.md")])
NAMED = re.compile(r"`(?:tests/)?(?:integrations/|experiments/)?(?:(test_\w+\.py))?(?:::)?(test_\w+)?(?:\[[^`]*\])?`")


def functions() -> dict[str, set[str]]:
    """Names of test functions, with the files that have them."""
    found = defaultdict(set)
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[node.name].add(path.name)
    return found


FUNCTIONS = functions()
FILES = {path.name for path in (ROOT / "tests").rglob("test_*.py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for file, function in NAMED.findall(page.read_text()):
        if file:
            assert file in FILES, file
        if function and not (not file and f"{function}.py" in FILES):
            assert FUNCTIONS[function], function
            assert not file or file in FUNCTIONS[function], (file, function)


def test_the_table_of_trainers_is_full() -> None:
    rows = [line for line in (ROOT / "docs/trainers.md").read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert {len(row) for row in cells} == {6}
    assert all(cell for row in cells[1:] for cell in row)
    assert sum("`test_" in cell or "`tests/" in cell for row in cells for cell in row) > 55


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target
