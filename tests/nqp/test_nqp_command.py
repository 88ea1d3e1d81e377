"""`latephase nqp`: figures, tables and page are made of the module's numbers, and mistakes are one line."""

import base64
import csv
import html.parser
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from latephase import nqp

command = pytest.importorskip("latephase.experiments.theory.command", reason="needs the extra 'experiments'")

SMALL = [
    "--quadratic.directions=20",
    "--quadratic.steady_directions=30",
    "--quadratic.members=[2,4]",
    "--quadratic.budgets=[80,200]",
    "--quadratic.tuned_budgets=[80]",
    "--quadratic.late_start=40",
    "--quadratic.horizon=1000",
    "--multiplicative.minibatches=120",
    "--multiplicative.drift_rounds=40",
    "--monte_carlo.replicas=20",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("theory")
    assert command.main([*SMALL, "--output", str(path)]) == 0
    return path


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_panel_is_a_drawing_and_a_table_of_the_same_name(folder):
    drawings = {path.stem for path in folder.glob("*.svg")}
    assert drawings == {
        "steady-state-averaged",
        "steady-state-members",
        "minibatches-start-0",
        "minibatches-late-start",
        "start-80",
        "start-200",
        "multiplicative-start",
        "multiplicative-drift",
        "annealing",
        "annealing-ratio",
    }
    tables = {"steady-state-table", "equal-minibatches", "one-direction", "multiplicative", "tuned"}
    assert {path.stem for path in folder.glob("*.csv")} == drawings | tables
    for path in folder.glob("*.svg"):
        assert ET.parse(path).getroot().tag.endswith("svg")


def test_numbers_are_those_of_the_module(folder):
    problem = nqp.Problem(nqp.power_law(20))
    late = [row for row in rows(folder / "minibatches-late-start.csv") if row["curve"] == "K = 4"]
    counts = [int(row["x"]) for row in late]
    assert counts[0] == 40
    assert counts[-1] <= 1000
    method = nqp.LatePhase(4, 0.25, 0.25, 0.25, start=40)
    np.testing.assert_allclose(
        [float(row["y"]) for row in late], method.expected_loss(problem, counts).average, rtol=1e-9
    )
    steady = rows(folder / "steady-state-table.csv")
    expected = nqp.LatePhase(2, 0.25, 0.25, 0.5).steady_state(nqp.Problem(nqp.power_law(30)))
    assert float(steady[1]["K=2"]) == pytest.approx(expected.average, rel=1e-9)
    assert float(steady[1]["K=2 member"]) == pytest.approx(expected.members, rel=1e-9)
    best = next(row for row in rows(folder / "equal-minibatches.csv") if (row["N"], row["K"]) == ("200", "4"))
    start, loss = nqp.best_start(nqp.LatePhase(4, 0.25, 0.25, 0.25), problem, 200)
    assert int(best["best T0"]) == start
    assert float(best["at best T0"]) == pytest.approx(loss.average, rel=1e-9)


def test_tuned_rates_are_optima(folder):
    problem = nqp.Problem(nqp.power_law(20))
    tuned = {row["method"]: row for row in rows(folder / "tuned.csv")}
    for name, build in {
        "SGD": nqp.SGD,
        "SGD annealed": lambda lr: nqp.SGD(lr, schedule=nqp.LinearDecay(40, 72, 0.01)),
        "Nesterov .9": lambda lr: nqp.SGD(lr, momentum=0.9, nesterov=True),
    }.items():
        lr, loss = float(tuned[name]["lr"]), float(tuned[name]["loss"])
        assert loss == pytest.approx(build(lr).expected_loss(problem, 80).average, rel=1e-3)
        for factor in (0.8, 1.25):
            if lr * factor < build(lr).max_lr(problem):
                assert loss <= build(lr * factor).expected_loss(problem, 80).average
    losses = [float(row["loss"]) for row in rows(folder / "tuned.csv")]
    assert losses == sorted(losses)


def test_simulated_dots_carry_standard_errors(folder):
    for name, dots in (("multiplicative-start", 2 * 6), ("multiplicative-drift", 3 * 5)):
        simulated = [row for row in rows(folder / f"{name}.csv") if row["curve"].endswith("simulated")]
        assert len(simulated) == dots
        assert all(float(row["standard_error"]) > 0 for row in simulated)


class Page(html.parser.HTMLParser):
    """Collects what the page refers to and its names."""

    def __init__(self):
        super().__init__()
        self.references, self.names, self.tags, self.downloads = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.names.append(value)
            elif name in ("src", "href", "xlink:href"):
                (self.downloads if value.startswith("data:text/csv") else self.references).append(value)


def test_page_is_self_contained_and_complete(folder):
    text = (folder / "index.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.tags.count("svg") == 10
    assert page.tags.count("table") == 5
    assert "script" not in page.tags
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.names)
    assert len(page.names) == len(set(page.names))
    assert len(page.downloads) == 10
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text
    for colour in ("#1b1b1b", "#0072b2"):
        # Colours appear where the two schemes define them, never in a drawing.
        assert len(re.findall(colour, text)) == 1
    embedded = base64.b64decode(page.downloads[0].split(",", 1)[1]).decode()
    written = (folder / "steady-state-averaged.csv").read_text(encoding="utf-8")
    parse = csv.reader
    assert list(parse(embedded.splitlines())) == list(parse(written.splitlines()))
    assert "latephase nqp --quadratic.directions=20" in text


def test_findings_quote_the_tables(folder):
    text = (folder / "index.html").read_text(encoding="utf-8")
    findings = re.search(r"<ul>(.*?)</ul>", text, re.DOTALL)[1]
    assert findings.count("<li>") == 4
    row = next(row for row in rows(folder / "equal-minibatches.csv") if (row["N"], row["K"]) == ("200", "4"))
    assert f"{float(row['at best T0']):.4f} from the best start at {row['best T0']}" in findings


def test_same_configuration_gives_the_same_bytes(folder, tmp_path):
    again = [*SMALL, "--parts=[start,multiplicative]"]
    assert command.main([*again, "--output", str(tmp_path)]) == 0
    for name in ("start-200.svg", "start-200.csv", "multiplicative-start.csv", "multiplicative-start.svg"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert not (tmp_path / "annealing.svg").exists()


def test_written_configuration_repeats_the_run(folder, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert command.main([*SMALL, "--parts=[start]", "--output", str(first)]) == 0
    assert command.main(["--config", str(first / "config.yaml"), "--output", str(second)]) == 0
    assert (first / "config.yaml").read_bytes() == (second / "config.yaml").read_bytes()
    assert (first / "start-80.csv").read_bytes() == (second / "start-80.csv").read_bytes()
    assert "Equal minibatches" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quadratic.lr=fast"], 'Parser key "quadratic.lr"'),
        (["--parts=[everything]"], "parts = ['everything'] has an unknown or no entry; need some of steady-state"),
        (["--quadratic.members=[0]"], "quadratic.members = [0] is out of range; need integers >= 1"),
        (["--quadratic.budgets=[20]"], "quadratic.budgets: 20 minibatches hold fewer than 10 rounds of 10"),
        (["--quadratic.annealing=[0.9,0.5,0.1]"], "quadratic.annealing = (0.9, 0.5, 0.1) is out of range"),
        (["--quadratic.directions=0", "--parts=[start]"], "n = 0 is too small; need an integer >= 1"),
        (["--monte_carlo.replicas=0", "--parts=[multiplicative]"], "replicas = 0 is too small; need an integer >= 1"),
        (["--nonsense=1"], "nonsense"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    output = tmp_path / "none"
    assert command.main([*arguments, "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("latephase: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not output.exists()
