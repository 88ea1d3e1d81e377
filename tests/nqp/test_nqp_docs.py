"""The page on the theory: its code runs and its tables are what the library computes."""

import doctest
import re
from dataclasses import replace
from pathlib import Path

import pytest

from latephase import nqp

PAGE = Path(__file__).resolve().parents[2] / "docs" / "theory.md"


def text():
    return PAGE.read_text(encoding="utf-8")


def test_code_runs_and_prints_what_the_page_says():
    blocks = re.findall(r"```python\n(.*?)```", text(), re.DOTALL)
    assert len(blocks) >= 5
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "theory.md", str(PAGE), 0)
    runner = doctest.DocTestRunner()
    runner.run(test)
    assert runner.failures == 0
    assert runner.tries >= 25


def test_figures_exist():
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text())
    assert len(figures) >= 4
    for figure in figures:
        assert (PAGE.parent / figure).is_file(), figure


def rows(header):
    """The cells of the table whose header starts like this."""
    lines = text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(header))
    table = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            return table
        table.append([cell.strip().strip("*") for cell in line.strip("|").split("|")])
    return table


def prints(value, cell):
    decimals = len(cell.split(".")[1])
    return abs(value - float(cell)) <= 0.5001 * 10.0**-decimals


def test_table_of_starts():
    problem, sgd = nqp.Problem(nqp.power_law(1000)), nqp.SGD(0.5)
    floor = sgd.steady_state(problem).average
    table = rows("| N | K | best T0")
    assert len(table) == 5
    for n, k, best, loss, ratio, rule, ruled, at_once, plain in table:
        budget, members = int(n), int(k)

        def late(start, members=members, budget=budget):
            method = nqp.LatePhase(members, 0.25, 0.25, 1 / members, start=start)
            return method.expected_loss(problem, budget).average

        start, found = nqp.best_start(nqp.LatePhase(members, 0.25, 0.25, 1 / members), problem, budget)
        assert start == int(best)
        assert prints(found.average, loss)
        assert prints(sgd.expected_loss(problem, start).average / floor, ratio)
        counts = range(budget % members, budget, members)
        curve = sgd.expected_loss(problem, list(counts)).average
        first = counts[next(i for i, value in enumerate(curve) if value <= (1 + 1 / members) * floor)]
        assert first == int(rule)
        assert prints(late(first), ruled)
        assert prints(late(0), at_once)
        assert prints(sgd.expected_loss(problem, budget).average, plain)


@pytest.mark.slow
def test_table_of_tuned_methods():
    annealing = pytest.importorskip("latephase.experiments.theory.annealing")
    from latephase.experiments.theory.config import TheoryConfig

    config = TheoryConfig()
    table = annealing.table(config, 1000, annealing.tuned(config, 1000))
    losses = {name: loss for name, _, _, loss in table.rows}
    names = {
        "SWA, all iterates": "SWA",
        "EMA .997": "EMA",
        "SGD annealed": "SGD annealed",
        "late phase K = 5 on annealed SGD": "K = 5 annealed",
        "SGD annealed, Nesterov .9": "Nesterov .9 annealed",
        "late phase K = 5 on that": "K = 5, Nesterov .9 annealed",
        "late phase K = 5, best T0": "K = 5",
        "SGD, one drop to lr/10": "SGD, one drop to lr/10",
        "late phase K = 10, best T0": "K = 10",
        "Lookahead": "Lookahead",
        "SGD, Nesterov .9": "Nesterov .9",
        "SGD": "SGD",
        "late phase K = 5, T0 = 0": "K = 5, T0 = 0",
        "late phase K = 10, T0 = 0": "K = 10, T0 = 0",
    }
    shown = {cells[i]: cells[i + 1] for cells in rows("| method | loss") for i in (0, 3)}
    assert shown.keys() == names.keys()
    for name, cell in shown.items():
        assert prints(losses[names[name]], cell), name


@pytest.mark.slow
def test_table_of_the_multiplicative_case():
    multiplicative = pytest.importorskip("latephase.experiments.theory.multiplicative")
    from latephase.experiments.theory.config import TheoryConfig

    config = TheoryConfig()
    simulated = {k: multiplicative.simulations(config, k) for k in config.quadratic.members}
    computed = multiplicative.table(config, simulated).rows
    for cells, row in zip(rows("| K | T0 = 0 | T0 = 600"), computed, strict=True):
        k, early, late, at_one, landing, place, drifted = cells
        assert int(k) == row[0]
        for cell, start in ((early, 0), (late, 600)):
            mean, error = simulated[int(k)][start]
            shown = [float(part) for part in cell.split("±")]
            assert abs(mean - shown[0]) <= 1e-5
            assert abs(error - shown[1]) <= 1e-5
        for cell, value in ((at_one, row[5]), (landing, row[7]), (place, row[8]), (drifted, row[9])):
            assert prints(value, cell), (k, cell, value)


def test_the_valley_is_as_flat_as_the_page_says():
    problem = nqp.Problem(nqp.power_law(1000))
    for members in (2, 5, 10):
        late = nqp.LatePhase(members, 0.25, 0.25, 1 / members)
        best = nqp.best_start(late, problem, 2000)[1].average
        for start in (670, 1000, 1500):
            loss = replace(late, start=start).expected_loss(problem, 2000).average
            assert best <= loss < 1.1005 * best
