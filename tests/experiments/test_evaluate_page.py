"""The page of an evaluation: every number comes from evaluation.json, and a real browser shows it."""

import copy
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from browser import open_browser
from evaluated import EVERYTHING, evaluated, trained

from latephase.experiments.evaluate.page import report, write_report
from latephase.experiments.evaluate.page_corruptions import add_corruptions
from latephase.experiments.evaluate.page_flatness import add_flatness
from latephase.experiments.evaluate.page_landscape import add_landscape
from latephase.experiments.evaluate.page_ood import add_ood
from latephase.experiments.evaluate.page_predictions import add_members, add_predictions
from latephase.experiments.evaluate.seeds import Methods, interval_text, mean_text
from latephase.experiments.report.document import Document, Section
from latephase.experiments.report.frame import to_html
from latephase.experiments.report.numbers import number

WIDTHS = (360, 768, 1280)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = trained(tmp_path_factory.mktemp("page"))
    evaluated(run, *EVERYTHING)
    return run


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.parent / "evaluation/evaluation.json").read_text())
    return found


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run.parent / "evaluation/evaluation.html").read_text()


def test_every_figure_has_its_numbers_beside_the_page(run: Path, results: dict[str, Any], page: str) -> None:
    names = [figure.name for figure in report(results).figures()]
    assert len(names) == len(set(names)) > 20
    assert sorted(path.stem for path in (run.parent / "evaluation/csv").iterdir()) == sorted(names)
    assert page.count("<svg") == len(names)
    assert "## Results" in (run.parent / "evaluation/tables.md").read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def section_of(results: dict[str, Any], add: Any) -> str:
    """The page's text with one part only."""
    section = Section("Part")
    add(Methods(results["settings"][0], ""), section)
    return to_html(Document("Title", "", [], [section]))


RUN = ("settings", 0, "methods", "late-phase", "runs", 0)
CHANGED = (
    (add_predictions, (*RUN, "predictions", "model", "scores", "accuracy")),
    (add_predictions, (*RUN, "predictions", "model", "scaled", "nll")),
    (add_predictions, (*RUN, "predictions", "model", "temperature", "temperature")),
    (add_predictions, (*RUN, "predictions", "model", "reliability", "correct", 5)),
    (add_predictions, (*RUN, "predictions", "model", "risk_coverage", "risk", 9)),
    (add_members, (*RUN, "predictions", "members", 1, "scores", "accuracy")),
    (add_members, (*RUN, "predictions", "comparison", "disagreement", 0, 1)),
    (add_ood, (*RUN, "ood", "uniform noise", "model", "scores", "entropy", "auroc")),
    (add_ood, (*RUN, "ood", "gaussian noise", "ensemble", "scores", "mutual_information", "fpr95")),
    (add_ood, (*RUN, "ood", "uniform noise", "model", "entropy", "outside", 3)),
    (add_corruptions, (*RUN, "corruptions", "model", "errors", "fog", 2)),
    (add_corruptions, (*RUN, "corruptions", "model", "relative", "mce")),
    (add_flatness, (*RUN, "flatness", "trace")),
    (add_flatness, (*RUN, "flatness", "eigenvalues", 0)),
    (add_flatness, (*RUN, "landscape", "perturbation", "loss", 2)),
    (add_landscape, (*RUN, "landscape", "lines", "train", "loss", 4)),
    (add_landscape, (*RUN, "landscape", "lines", "train", "segments", 0, "loss_barrier")),
    (add_landscape, (*RUN, "landscape", "plane", "loss", 1, 1)),
    (add_landscape, (*RUN, "landscape", "layers", "disagreement", 1, "disagreement", 0)),
)


@pytest.fixture(scope="module")
def sections(results: dict[str, Any]) -> dict[Any, str]:
    return {add: section_of(results, add) for add, _ in CHANGED}


@pytest.mark.parametrize(("add", "path"), CHANGED, ids=lambda v: "/".join(map(str, v)) if isinstance(v, tuple) else "")
def test_a_number_altered_in_the_results_is_altered_on_the_page(
    results: dict[str, Any], sections: dict[Any, str], add: Any, path: tuple[Any, ...]
) -> None:
    altered = copy.deepcopy(results)
    altered.pop("sha256")  # or it would be refused
    *parents, last = path
    place: Any = altered
    for key in parents:
        place = place[key]
    place[last] += 0.1234
    changed = section_of(altered, add)
    assert changed != sections[add]
    # Not in the data of a link alone: in a table, a sentence or a drawing that a person sees.
    seen = [re.sub(r'href="data:[^"]*"', "", text) for text in (changed, sections[add])]
    assert seen[0] != seen[1]


def test_an_altered_number_is_the_one_on_the_page(run: Path, results: dict[str, Any], tmp_path: Path) -> None:
    altered = copy.deepcopy(results)
    del altered["sha256"]  # a page is made of what was measured, or of a file that claims no checksum
    for found in altered["settings"][0]["methods"]["base"]["runs"]:
        found["predictions"]["model"]["scores"]["accuracy"] = 0.123456
    (tmp_path / "evaluation.json").write_text(json.dumps(altered))
    write_report(tmp_path / "evaluation.json", tmp_path / "evaluation.html")
    assert "12.35 ± 0.00" in (tmp_path / "evaluation.html").read_text()
    assert "12.35 ± 0.00" in (tmp_path / "tables.md").read_text()
    assert "12.3456" in (tmp_path / "csv/accuracy.csv").read_text()


def test_commit_and_command_are_on_the_page(results: dict[str, Any], page: str) -> None:
    text = unescape(page)
    for fact in (results["command"], results["date"], results["device"], results["versions"]["torch"]):
        assert fact in text
    assert (results["commit"] or "not in a git repository") in text


def test_sentences_claim_what_the_intervals_show(results: dict[str, Any]) -> None:
    setting = copy.deepcopy(results["settings"][0])

    def accuracies(late: list[float], base: list[float]) -> Methods:
        for method, values in (("late-phase", late), ("base", base)):
            for found, value in zip(setting["methods"][method]["runs"], values, strict=True):
                found["predictions"]["model"]["scores"]["accuracy"] = value
        return Methods(setting, "")

    def get(found: dict[str, Any]) -> float:
        return float(found["predictions"]["model"]["scores"]["accuracy"])

    told = accuracies([0.9, 0.91], [0.8, 0.811]).compared(get, "test accuracy", 2, 100.0, "points")
    assert told == "Late-phase has a higher test accuracy than plain SGD (+9.95 [+9.31, +10.59]* points)."
    told = accuracies([0.9, 0.8], [0.8, 0.9]).compared(get, "test accuracy", 2, 100.0, "points")
    assert told is not None
    assert "are not told apart in test accuracy" in told
    # Equal differences of two seeds have an interval without width, which establishes nothing.
    told = accuracies([0.75, 0.5], [0.5, 0.25]).compared(get, "test accuracy", 2, 100.0, "points")
    assert told is not None
    assert "are not told apart" in told


def test_numbers_are_written_with_their_spread() -> None:
    assert mean_text({"mean": 0.5, "se": 0.01, "n": 3}, 1, 100.0) == "50.0 ± 1.0"
    assert mean_text({"mean": -0.5, "se": None, "n": 1}, 2) == number(-0.5, 2)
    assert mean_text(None, 2) == interval_text(None, 2) == ""


def test_both_reports_in_a_real_browser(run: Path, tmp_path: Path) -> None:
    """No complaint on the console, nothing asked of the network, every figure drawn, no horizontal scrolling."""
    pages = (run / "report.html", run.parent / "evaluation/evaluation.html")
    with open_browser(tmp_path) as tab:
        for file in pages:
            for width in WIDTHS:
                for dark in (False, True):
                    tab.open(file, width, dark=dark)
                    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
                    assert tab.evaluate("document.documentElement.scrollWidth") <= width, (file.name, width)
                    boxes = tab.evaluate(
                        "[...document.querySelectorAll('figure')].map(f => { const s = f.querySelector('svg');"
                        "if (!s) return [0, 0, 0]; const b = s.getBoundingClientRect();"
                        "return [b.width, b.height, s.querySelectorAll('path, use').length] })"
                    )
                    assert len(boxes) == len(list((file.parent / "csv").iterdir())) > 6
                    assert all(w > 150 and h > 60 and marks > 5 for w, h, marks in boxes), (file.name, width)
                    lightness = tab.evaluate(
                        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
                    )
                    assert (sum(lightness) < 200) == dark
            links = tab.evaluate(
                "[...document.querySelectorAll('nav a')].map(a => !!document.getElementById(a.hash.slice(1)))"
            )
            assert len(links) >= 3
            assert all(links)
        assert tab.complaints == []


def test_the_browser_notices_what_is_wrong(tmp_path: Path) -> None:
    """The checks above can fail."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><body><div style='width:3000px'>wide</div><img src='missing.png'>"
        "<script>console.error('wrong'); undefinedFunction()</script></body>"
    )
    with open_browser(tmp_path) as tab:
        tab.open(bad, 800)
        assert tab.evaluate("document.documentElement.scrollWidth") > 800
        assert len(tab.complaints) >= 3
