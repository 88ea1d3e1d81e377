"""The report: every number of results.json is on the page, which stands on its own."""

import copy
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from experiment_helpers import tiny_recipe

from latephase.experiments.methods import label_of, method_names
from latephase.experiments.report.export import csv_text, to_markdown
from latephase.experiments.report.looks import GROUPS, group_of, looks_of
from latephase.experiments.report.numbers import difference, duration, labelled, mean, number, resolved
from latephase.experiments.report.page import render, report, write_report
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
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("data:text/csv;base64,"):
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
    # Two in the overview; differences, accuracy, NLL, ECE, curves, reliability and disagreement for each setting, and
    # the controls in the one that has them.
    assert checker.figures == 2 + 8 + 7
    # The contents lead to every section.
    assert page.count("<section") == page.count('<li><a href="#s') - page.count('<li><a href="#s0-') - len(
        re.findall(r'<li><a href="#s[1-9]-', page)
    )
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
    assert checker.figures == 6
    assert "reaches" in page
    assert (tmp_path / "run" / "csv" / "tiny-curves.csv").exists()
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
    assert not resolved(paired(0.1, 0.1, 0.1))  # two seeds whose differences happen to be equal
    assert resolved(paired(0.1, 0.05, 0.15))
    assert [duration(s) for s in (0.44, 12.3, 210, 7200)] == ["0.4 s", "12 s", "3.5 min", "2.0 h"]


def test_every_figure_has_its_numbers_and_every_table_its_markdown(results: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_report(tmp_path / "results.json", tmp_path / "report.html")
    document = report(results)
    figures = list(document.figures())
    assert sorted(path.stem for path in (tmp_path / "csv").iterdir()) == sorted(figure.name for figure in figures)
    for figure in figures:
        rows = list(csv.reader((tmp_path / "csv" / f"{figure.name}.csv").read_text().splitlines()))
        assert tuple(rows[0]) == figure.heads
        assert len(rows) == 1 + len(figure.rows) > 1
        assert {len(row) for row in rows} == {len(figure.heads)}
    markdown = (tmp_path / "tables.md").read_text()
    assert markdown == to_markdown(document)
    setting = results["settings"][0]
    for method in setting["methods"].values():
        assert mean(method["test"]["accuracy"], "accuracy") in markdown


def test_the_csv_holds_the_results_unrounded(results: dict[str, Any]) -> None:
    figure = next(figure for figure in report(results).figures() if figure.name.endswith("-nll"))
    base = results["settings"][0]["methods"]["base"]["test"]["nll"]["mean"]
    assert ("base", base) == next(row[:2] for row in figure.rows if row[0] == "base")
    assert csv_text(["a"], [[base]]) == f"a\n{base!r}\n"


def test_a_method_of_greater_cost_is_marked_wherever_it_stands(results: dict[str, Any]) -> None:
    dear = copy.deepcopy(results)
    dear["settings"][0]["methods"]["twin"]["cost"] = 10
    assert labelled(dear["settings"][0]["methods"]["twin"]) == "twin, 10\u00d7 the cost"
    assert render(dear).count("twin, 10\u00d7 the cost") >= 5


def test_every_method_of_a_large_study_can_be_told_apart_without_colour() -> None:
    names = method_names()
    assert len(names) >= 25
    looks = looks_of(names[:30])
    assert len({(look.marker, look.filled) for look in looks.values()}) == len(looks)
    groups = [list(GROUPS).index(group_of(name)) for name in looks]
    assert groups == sorted(groups)
    for name in names:
        assert group_of(name) != "other", name


def test_a_study_of_25_methods_is_drawn_and_labelled(results: dict[str, Any]) -> None:
    large = copy.deepcopy(results | {"settings": results["settings"][:1]})
    setting = large["settings"][0]
    template = setting["methods"]["twin"]
    for name in method_names():
        if len(setting["methods"]) < 25 and name not in setting["methods"]:
            setting["methods"][name] = template | {"label": label_of(name), "reads": name, "training": label_of(name)}
    page = render(large)
    for figure in re.findall(
        r'<figure id="figure-[^"]*-(?:accuracy|nll|curves|reliability)">.*?</figure>', page, re.DOTALL
    ):
        for method in setting["methods"].values():
            label = method["training"] if "-curves" in figure[:80] else method["label"]
            assert f">{label}</text>" in figure, (figure[:60], label)
