"""The report: every number of results.json is on the page, which stands on its own."""

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from experiment_helpers import tiny_recipe

from latephase.experiments.report.numbers import difference, duration, mean, number, resolved
from latephase.experiments.report.page import render
from latephase.experiments.report.sentences import caution, findings, headline
from latephase.experiments.study import compare, train

METHODS = "[base,swa,late-phase,late-phase+swa,twin,k-batch,lr-over-k]"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    recipes = {
        "noisy": tiny_recipe(methods=METHODS, seeds=3, training__epochs=2, title="noisy & <small>"),
        "clean": tiny_recipe(methods="[base,late-phase]", seeds=3, training__epochs=2, data__label_noise=0),
    }
    folder = tmp_path_factory.mktemp("report") / "run"
    return compare(recipes, folder, command="latephase compare noisy clean --seeds 3", workers=1)


@pytest.fixture(scope="module")
def page(results: dict[str, Any]) -> str:
    return render(results)


@pytest.fixture(scope="module")
def one_page(results: dict[str, Any]) -> str:
    return render(results | {"settings": results["settings"][:1]})


class Checker(HTMLParser):
    """Collects what a page refers to, and fails on tags that do not close in order."""

    VOID = frozenset({"meta", "br", "img", "link", "use", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.outside: list[str] = []
        self.figures = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.figures += tag == "svg"
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                (self.references.add if (value or "").startswith("#") else self.outside.append)((value or "")[1:])
            self.references |= set(re.findall(r"url\(#([^)]+)\)", value or ""))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_stands_on_its_own(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.outside == []
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.references <= set(checker.ids)
    assert "@import" not in page
    assert "<script" not in page
    # Two in the overview; differences, accuracy, NLL, curves, reliability and agreement for each setting.
    assert checker.figures == 2 + 6 + 6
    assert "noisy &amp; &lt;small&gt;" in page
    assert "<small>" not in page


def test_no_colour_of_the_figures_is_fixed(page: str) -> None:
    figures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.search(r"#[0-9a-fA-F]{6}", figures)
    assert "var(--series-2)" in figures


def test_the_same_results_make_the_same_page(results: dict[str, Any], page: str) -> None:
    assert render(copy.deepcopy(results)) == page


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, v in value.items() for leaf in leaves(v, (*path, key))]
    if isinstance(value, list):
        return [leaf for i, v in enumerate(value) for leaf in leaves(v, (*path, i))]
    return [path] if isinstance(value, int | float) and not isinstance(value, bool) else []


# One of each kind: the table's means and errors, every interval, members, seeds, curves, bins, times, the recipe.
CHANGED = (
    ("methods", "late-phase", "test", "accuracy", "mean"),
    ("methods", "late-phase", "test", "nll", "se"),
    ("methods", "twin", "against", "base", "accuracy", "low"),
    ("methods", "swa", "against", "base", "ece", "high"),
    ("methods", "lr-over-k", "against", "swa", "brier", "mean"),
    ("methods", "late-phase", "ensemble", "ece", "mean"),
    ("methods", "late-phase", "member_mean", "brier", "mean"),
    ("methods", "k-batch", "validation", "accuracy", "mean"),
    ("methods", "base", "by_seed", "accuracy", 1),
    ("methods", "late-phase", "curve", "accuracy", 1),
    ("methods", "base", "reliability", "confidence", 5),
    ("methods", "late-phase", "disagreement", 0, 1),
    ("methods", "twin", "seconds", "own", "mean"),
    ("contrasts", 0, "mean"),
    ("images", "train"),
    ("minibatches", "trained"),
    ("minibatches", "each_run"),
    ("recipe", "training", "lr"),
    ("seeds", 2),
)


@pytest.mark.parametrize("path", CHANGED, ids=lambda path: "/".join(map(str, path)))
def test_a_number_altered_in_the_results_is_altered_on_the_page(
    results: dict[str, Any], one_page: str, path: tuple[Any, ...]
) -> None:
    one = results | {"settings": results["settings"][:1]}
    assert path in leaves(one["settings"][0])
    altered = copy.deepcopy(one)
    *parents, last = path
    place = altered["settings"][0]
    for key in parents:
        place = place[key]
    place[last] = place[last] + 7 if isinstance(place[last], int) else place[last] + 0.1234
    assert render(altered) != one_page


def test_the_tables_numbers_are_those_of_the_results(results: dict[str, Any], page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", page)
    for setting in results["settings"]:
        for method in setting["methods"].values():
            for metric in ("accuracy", "nll", "ece", "brier"):
                assert mean(method["test"][metric], metric) in text
                for versus in method["against"].values():
                    assert difference(versus[metric], metric) in text
        for contrast in setting["contrasts"]:
            assert difference(contrast, "accuracy") in text
    for fact in (results["command"], results["device"], results["versions"]["torch"], results["date"]):
        assert fact in text


def test_a_single_training_has_a_page_too(tmp_path: Path) -> None:
    results = train("tiny", tiny_recipe(training__epochs=2), tmp_path / "run", command="latephase train tiny")
    page = render(results)
    checker = Checker()
    checker.feed(page)
    assert checker.figures == 5
    assert "reaches" in page
    assert caution(results).startswith("There is one seed only")


def paired(mean: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"mean": mean, "se": 0.1, "n": 5, "low": low, "high": high}


@pytest.mark.parametrize(
    ("accuracy", "sentence"),
    [
        (
            paired(0.02, 0.01, 0.03),
            "Late-phase weights are 2.00 points better than plain SGD (95% interval 1.00 to 3.00).",
        ),
        (
            paired(-0.02, -0.03, -0.01),
            "Late-phase weights are 2.00 points worse than plain SGD (95% interval \u22123.00 to \u22121.00).",
        ),
        (
            paired(0.001, -0.01, 0.012),
            "Late-phase weights and plain SGD are not told apart: the difference in accuracy is "
            "+0.10 [\u22121.00, +1.20] points.",
        ),
        (
            paired(0.02, None, None),
            "Late-phase weights and plain SGD differ by +2.00 points in one seed, which establishes nothing.",
        ),
    ],
)
def test_the_headline_says_what_the_interval_says(accuracy: dict[str, Any], sentence: str) -> None:
    setting = {"methods": {"late-phase": {"label": "late-phase", "against": {"base": {"accuracy": accuracy}}}}}
    assert headline(setting) == sentence


def test_the_findings_do_not_claim_more_than_the_intervals(results: dict[str, Any]) -> None:
    setting = copy.deepcopy(results["settings"][0])
    for contrast in setting["contrasts"]:
        contrast |= paired(0.01, -0.01, 0.03)
    text = " ".join(findings(setting))
    assert text.count("which does not tell the two apart") == 2
    assert "members themselves" not in text
    for contrast in setting["contrasts"]:
        contrast |= paired(0.02, 0.01, 0.03)
    text = " ".join(findings(setting))
    assert "so the members themselves add something" in text
    assert "so it is more than a smaller learning rate" in text
    for contrast in setting["contrasts"]:
        contrast |= paired(-0.02, -0.03, -0.01)
    assert " ".join(findings(setting)).count("so the control does better") == 2


def test_numbers_are_written_for_readers() -> None:
    assert number(-0.456, 2) == "\u22120.46"
    assert mean({"mean": 0.8753, "se": 0.0048}, "accuracy") == "87.53 ± 0.48"
    assert difference(paired(0.0256, 0.0177, 0.0334), "accuracy") == "+2.56 [+1.77, +3.34]*"
    assert not resolved(paired(0.1, None, None))
    assert [duration(s) for s in (0.44, 12.3, 210, 7200)] == ["0.4 s", "12 s", "3.5 min", "2.0 h"]
