"""The version in all its places, and what the supply chain's tools make of good and bad cases."""

import ast
import re
import runpy
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

import latephase
from latephase.cli import main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
SETTINGS = tomllib.loads((ROOT / "tools/supply_chain.toml").read_text())
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.fixture(scope="module")
def audit() -> dict:
    return runpy.run_path(str(ROOT / "tools/audit.py"))


@pytest.fixture(scope="module")
def package() -> dict:
    return runpy.run_path(str(ROOT / "tools/package.py"))


@pytest.fixture(scope="module")
def licences() -> dict:
    pytest.importorskip("license_expression", reason="needs the dependency group 'supply'")
    return runpy.run_path(str(ROOT / "tools/licences.py"))


def test_the_version_is_the_same_everywhere() -> None:
    head = re.search(r"^## \[?([^\]\s]+)\]?", CHANGELOG, re.MULTILINE)[1]
    assert head == latephase.__version__ == metadata("latephase")["Version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(-(alpha|beta|rc)\.\d+)?", head)


def test_the_changelog_keeps_its_form() -> None:
    releases = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    assert all(re.fullmatch(r"Unreleased|\d+\.\d+\.\d+ - (\d{4}-\d{2}-\d{2}|unreleased)", line) for line in releases)
    for release in re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)[1:]:
        sections = re.findall(r"^### (.+)$", release, re.MULTILINE)
        assert sections
        assert set(sections) <= KINDS
        assert len(set(sections)) == len(sections)
    entries = re.findall(r"^- `?([\w. ]+)`?", CHANGELOG, re.MULTILINE)
    assert len(set(entries)) == len(entries), "two entries on one thing"


def test_versions_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(rf"latephase {re.escape(latephase.__version__)}, Python \S+, torch \S+, .+\n", said)


def test_the_oldest_versions_are_those_that_make_test_oldest_runs() -> None:
    script = (ROOT / "tools/test_oldest.sh").read_text()
    named = re.findall(r"tests/[\w/]+(?:\.py)?", script)
    assert len(named) > 10
    assert all((ROOT / name).exists() for name in named)
    assert PROJECT["requires-python"] == ">=" + re.search(r"\$\{2:-([\d.]+)\}", script)[1]


RELEASE = {"name": "jinja2", "version": "2.4.1"}
FOUND = RELEASE | {"vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3"], "description": "bad"}]}
FINE = {"name": "torch", "version": "2.15.0", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found: torch"}
IGNORED = {"id": "CVE-1", "package": "jinja2", "since": "2026-01-31", "reason": "not reached"}


@pytest.mark.parametrize(
    ("answers", "control", "ignored", "code", "words"),
    [
        ([FINE], [FOUND], [], 0, "1 of 1 locked releases audited with pypi: 0 vulnerabilities"),
        ([FINE, FOUND], [FOUND], [], 1, "jinja2 2.4.1: PYSEC-1, mended in 3: bad"),
        ([FINE, FOUND], [FOUND], [IGNORED], 0, "ignored since 2026-01-31: jinja2 2.4.1: PYSEC-1: not reached"),
        ([FINE], [FOUND], [IGNORED], 1, "CVE-1 of jinja2 is no longer met: take it off the list"),
        ([FINE, FOUND], [FOUND], [IGNORED | {"package": "torch"}], 1, "1 vulnerabilities, 0 ignored"),
        # pip-audit ends with 0 in these two cases: it passes over what it is not told about.
        ([SKIPPED], [FOUND], [], 3, "0 of 1 locked releases audited"),
        ([FINE], [RELEASE | {"skip_reason": "Dependency not found"}], [], 3, "Nothing was audited"),
        ([FINE], [RELEASE | {"vulns": []}], [], 3, "Nothing was audited"),
        ([SKIPPED, FOUND], [FOUND], [], 1, "not audited: Dependency not found: torch"),
    ],
)
def test_verdicts_of_the_audit(audit: dict, answers, control, ignored, code: int, words: str) -> None:
    verdict, lines = audit["judge"](answers, control, ignored, "pypi")
    assert verdict == code
    assert any(words in line for line in lines), lines


def test_the_audit_asks_about_every_release_of_the_lock(audit: dict) -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    releases = audit["locked"](lock)
    assert {p["name"] for p in lock["package"]} - {name.partition("==")[0] for name in releases} == {"latephase"}
    parts = audit["once_each"](releases)
    assert sorted(release for part in parts for release in part) == sorted(releases)
    for part in parts:
        names = [release.partition("==")[0] for release in part]
        assert len(set(names)) == len(names)


def said(name: str = "thing", expression: str = "UNKNOWN", plain: str = "UNKNOWN", classifier: str = "UNKNOWN") -> dict:
    return {
        "Name": name,
        "Version": "1",
        "License-Expression": expression,
        "License-Metadata": plain,
        "License-Classifier": classifier,
    }


@pytest.mark.parametrize(
    ("part", "package", "words"),
    [
        ("core", said(expression="MIT"), None),
        ("core", said(plain="Apache 2.0 License\n\nhas a text"), None),
        ("core", said(classifier="Apache Software License"), None),
        ("core", said(expression="GPL-3.0-only OR MIT"), None),
        ("core", said(expression="GPL-3.0-only AND MIT"), "GPL-3.0-only AND MIT is not allowed in core"),
        ("core", said(expression="MPL-2.0"), "MPL-2.0 is not allowed in core"),
        ("extras", said(expression="MPL-2.0"), None),
        ("core", said(expression="LicenseRef-NVIDIA-Proprietary"), None),
        ("core", said(expression="LicenseRef-Other"), "is not allowed"),
        ("core", said(plain="BSD"), "no SPDX licence in its metadata ('BSD')"),
        ("core", said(name="SciPy", plain="BSD"), "LGPL-2.1-or-later is not allowed in core"),
    ],
)
def test_verdicts_on_licences(licences: dict, part: str, package: dict, words: str | None) -> None:
    wrong, _, _ = licences["judge"](part, [package], SETTINGS["licences"])
    assert len(wrong) == (words is not None), wrong
    assert words is None or words in wrong[0]


WHEEL = {
    *(f"latephase/{name}" for name in ("__init__.py", "py.typed", "experiments/recipes/digits.yaml")),
    "latephase/experiments/report/style.css",
    *(f"latephase-1.dist-info/{n}" for n in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")),
}
SOURCES = {f"src/{name}" for name in WHEEL if "dist-info" not in name}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tests/test_x.py"}, "in the .whl, but not of the repository: ['tests/test_x.py']"),
        ({"latephase/left_over.py"}, "not of the repository"),
        ({"latephase/py.typed"}, "not in the .whl: ['latephase/py.typed']"),
        ({"latephase-1.dist-info/licenses/LICENSE"}, "the wheel's metadata are"),
    ],
)
def test_a_wheel_with_more_or_less_is_refused(package: dict, changed: set[str], words: str) -> None:
    package["check_names"](WHEEL, SOURCES, ".whl")
    with pytest.raises(package["PackageError"], match=re.escape(words)):
        package["check_names"](WHEEL ^ changed, SOURCES, ".whl")


def test_data_in_the_sources_is_refused(package: dict) -> None:
    with pytest.raises(package["PackageError"], match=r"of no known kind: .*data\.npz"):
        package["check_names"](WHEEL | {"latephase/data.npz"}, SOURCES | {"src/latephase/data.npz"}, ".whl")


def test_an_sdist_holds_what_belongs_beside_the_sources(package: dict) -> None:
    package["check_names"](SOURCES | package["BESIDE"], SOURCES, ".gz")
    with pytest.raises(package["PackageError"], match=re.escape("results/README.md")):
        package["check_names"](SOURCES | package["BESIDE"] | {"results/README.md"}, SOURCES, ".gz")


def rows_of_the_design() -> dict[str, int]:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", (ROOT / "docs/design.md").read_text(), re.MULTILINE)
    return {name: int(row) for row, names in rows for name in re.findall(r"`(\w+)`", names)}


def test_the_table_of_modules_in_the_design_is_that_of_the_sources() -> None:
    rows = rows_of_the_design()
    core = Path(latephase.__file__).parent
    modules = {path.stem for path in core.glob("*.py")} - {"__init__", "__main__", "_version", "cli"} | {"families"}
    assert rows.keys() == modules
    for module, row in rows.items():
        package = core / module
        for path in package.glob("*.py") if package.is_dir() else [core / f"{module}.py"]:
            depth = 2 if package.is_dir() else 1
            for node in ast.parse(path.read_text()).body:  # what is imported for its types alone stands in an `if`
                if isinstance(node, ast.ImportFrom) and node.level == depth:
                    names = [node.module] if node.module else [alias.name for alias in node.names]
                    for name in {name.partition(".")[0] for name in names} - {"_version"}:
                        assert rows[name] < row, f"{module}, row {row}, imports {name}, row {rows[name]}"
