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
    settings = {name: setting for name, _, setting, _ in table.rows}
    assert settings["late phase, annealed"] == settings["SGD lr/K, annealed"] == "K = 2, T0 = 274"
    assert settings["late phase, Nesterov .9 annealed"] == "K = 2, T0 = 280"
    assert settings["late phase"] == "K = 5, T0 = 705"
    assert settings["SGD, best of four other shapes"] == "0%, 100%, 0.01"
    names = {
        "SWA, all iterates": "SWA",
        "EMA .997": "EMA",
        "SGD, a better shape of annealing": "SGD, best of four other shapes",
        "SGD annealed, lr/2 from T0 = 274": "SGD lr/K, annealed",
        "late phase on annealed SGD, K = 2, T0 = 274": "late phase, annealed",
        "SGD annealed": "SGD annealed",
        "late phase on the next, K = 2, T0 = 280": "late phase, Nesterov .9 annealed",
        "SGD annealed, Nesterov .9": "Nesterov .9 annealed",
        "late phase, K = 5, T0 = 705": "late phase",
        "SGD, one drop to lr/10": "SGD, one drop to lr/10",
        "Lookahead": "Lookahead",
        "SGD, Nesterov .9": "Nesterov .9",
        "SGD": "SGD",
        "K = 2 from the beginning": "late phase K = 2 from the beginning",
        "K = 5 from the beginning": "late phase K = 5 from the beginning",
        "K = 10 from the beginning": "late phase K = 10 from the beginning",
    }
    shown = {cells[i]: cells[i + 1].strip("*") for cells in rows("| method | loss") for i in (0, 3)}
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


def test_a_schedule_inside_a_round_copies_it_in_one_direction():
    members, x = 5, 0.6
    # Rates of K steps that give all K minibatches the weight (1 - a) / K and keep a of the old iterate.
    rates = [x / members]
    for _ in range(members - 1):
        rates.append(rates[-1] / (1 - rates[-1]))
    rates.reverse()
    problem = nqp.Problem([1.0], [2.0], initial_mean=1.5)
    mean, variance = 1.5, 0.0
    for _ in range(4):
        for rate in rates:
            mean, variance = (1 - rate) * mean, (1 - rate) ** 2 * variance + rate**2 * 2.0
    late = nqp.LatePhase(members, x / 2, x / 2, 1 / members).expected_loss(problem, 4 * members)
    assert late.average == pytest.approx(0.5 * (mean**2 + variance), rel=1e-12)


@pytest.mark.slow
def test_gains_over_annealed_sgd():
    annealing = pytest.importorskip("latephase.experiments.theory.annealing")
    from latephase.experiments.theory.config import TheoryConfig

    for budget, percent in ((200, 0.6), (500, 1.5), (1000, 2.8)):
        loss = {entry.name: entry.loss for entry in annealing.tuned(TheoryConfig(), budget)}
        gain = 1 - loss["late phase, annealed"] / loss["SGD annealed"]
        assert gain == pytest.approx(percent / 100, abs=5.1e-4)
        assert loss["SGD lr/K, annealed"] < loss["late phase, annealed"]
        assert loss["late phase"] > loss["SGD annealed"]
