"""What the pages say is done: their Python runs, their commands parse, their tables are the results' own."""

import contextlib
import doctest
import importlib.util
import io
import re
import shlex
import warnings
from pathlib import Path

import pytest

from latephase.cli import main

ROOT = Path(__file__).parents[1]
PAGES = {str(page.relative_to(ROOT / "docs")): page for page in sorted((ROOT / "docs").rglob("*.md"))}
FENCE = re.compile(r"(?P<before>[^\n]*)\n(?P<indent>[ ]*)```(?P<language>\w+)\n(?P<code>.*?)\n[ ]*```", re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .{20,} -->")
SLOW = {"quickstart.md"}  # trainers take seconds to import
# Pages with a test of their own, which runs their code.
ELSEWHERE = {
    "evaluation.md": "evaluation/test_evaluation_docstrings.py",
    "export.md": "integrations/test_export_documents.py",
    "theory.md": "nqp/test_nqp_docs.py",
}


def blocks(page: Path, language: str) -> list[str]:
    """The code of a page in a language, without the blocks that say why they do not run."""
    found = FENCE.finditer("\n" + page.read_text(encoding="utf-8"))
    return [each["code"] for each in found if each["language"] == language and not NOT_RUN.search(each["before"])]


def with_python() -> list:
    names = [name for name, page in PAGES.items() if blocks(page, "python") and name not in ELSEWHERE]
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]


@pytest.mark.parametrize("name", with_python())
def test_python_on_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of trainers; those of the library are errors in its own tests
        for code in blocks(PAGES[name], "python"):
            if ">>> " in code:
                test = doctest.DocTestParser().get_doctest(code + "\n", names, name, name, 0)
                runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
                runner.run(test, clear_globs=False)
                assert runner.failures == 0
                names = test.globs
            else:
                exec(compile(code, name, "exec"), names)


def test_few_blocks_do_not_run() -> None:
    marked = [name for name, page in PAGES.items() for _ in NOT_RUN.findall(page.read_text(encoding="utf-8"))]
    assert len(marked) < 10, marked
    assert len(with_python()) > 14
    for name, file in ELSEWHERE.items():
        assert name in (ROOT / "tests" / file).read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every `latephase` command in a block of shell on any page, the README's left to its own test."""
    pages = [*PAGES.values(), *ROOT.glob("results/**/README.md"), ROOT / "CONTRIBUTING.md"]
    code = "\n".join(block for page in pages for kind in ("console", "bash") for block in blocks(page, kind))
    lines = re.sub(r"\\\n\s*", " ", code).splitlines()
    return sorted({line.removeprefix("$ ") for line in lines if line.startswith(("$ latephase ", "latephase "))})


@pytest.mark.parametrize("command", commands())
def test_a_command_on_a_page_parses(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    verb, *arguments = shlex.split(command, comments=True)[1:]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main([verb, *arguments, *([] if verb in ("--version", "--help") else ["--help"])])
        except SystemExit as end:
            code = end.code or 0
    assert code == 0, said.getvalue()


def result_tables():
    spec = importlib.util.spec_from_file_location("result_tables", ROOT / "docs" / "_ext" / "result_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("without", ["cost", pytest.param("", marks=pytest.mark.slow, id="networks too")])
def test_tables_are_those_of_the_results(without: str) -> None:
    module = result_tables()
    assert len(module.pages()) >= 12
    for page in module.pages():
        text = page.read_text(encoding="utf-8")
        assert module.rewritten(text, without) == text, f"{page.name}: run python docs/_ext/result_tables.py"


def numbers(text: str) -> set[str]:
    return {found.lstrip("+-\u2212") for found in re.findall(r"\d+\.\d+", text)}


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("methods/")])
def test_numbers_in_the_text_of_a_card_stand_in_a_table(name: str) -> None:
    """In one of its own, or on a page of results that it links; or they are the difference of two published ones."""
    text = PAGES[name].read_text(encoding="utf-8")
    lines = re.sub(r"```.*?```|`[^`\n]+`", "", text, flags=re.DOTALL).splitlines()
    prose = "\n".join(line for line in lines if not line.startswith(("|", "<!--")))
    linked = [PAGES[name].parent / target / "README.md" for target in re.findall(r"\]\((\S+?results/[\w-]+)\)", text)]
    known = numbers("\n".join(line for line in lines if line.startswith("|")))
    known |= numbers("".join(page.read_text(encoding="utf-8") for page in linked))
    published = [float(row) for row in re.findall(r"^\| (?:SGD|SWA|Adam), .*?\| ([\d.]+)", text, flags=re.MULTILINE)]
    known |= {f"{abs(a - b):.2f}" for a in published for b in published}
    assert numbers(prose) <= known
