"""The multiplicative case: the start and the drift along the solution manifold, beside the simulated process."""

from __future__ import annotations

import numpy as np

from latephase import nqp
from latephase.experiments.theory.config import TheoryConfig
from latephase.experiments.theory.draw import look
from latephase.experiments.theory.panel import Curve, Figure, Panel
from latephase.experiments.theory.setting import start_near
from latephase.experiments.theory.table import Table

# Start in minibatches -> mean and standard error of the simulated loss.
Simulations = dict[int, tuple[float, float]]

_DRIFT_MEMBERS = 5
_SIMULATED_SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.9)


def method_of(config: TheoryConfig, members: int, start: int = 0) -> nqp.MultiplicativeLatePhase:
    """Multiplicative late-phase training as configured.

    Args:
        config: What to compute.
        members: K.
        start: T0 in minibatches.

    Returns:
        The method, with mean base gradients.
    """
    given = config.multiplicative
    return nqp.MultiplicativeLatePhase(
        members,
        given.base_lr,
        given.late_lr,
        1 / members,
        perturbation_variance=given.perturbation**2,
        start=start,
        sgd_lr=given.sgd_lr,
    )


def problem_of(config: TheoryConfig) -> nqp.Problem:
    """The group of weights, started at 0 with the optimum at 1.

    Args:
        config: What to compute.

    Returns:
        The problem.
    """
    given = config.multiplicative
    return nqp.Problem(nqp.power_law(given.directions), batch_size=given.batch_size, initial_mean=-1.0)


def simulations(config: TheoryConfig, members: int) -> Simulations:
    """Simulate the loss after N minibatches for several starts.

    Args:
        config: What to compute.
        members: K.

    Returns:
        For each start the mean over the replicas and its standard error.
    """
    budget, monte_carlo = config.multiplicative.minibatches, config.monte_carlo
    results = {}
    for start in sorted({start_near(share * budget, budget, members) for share in _SIMULATED_SHARES}):
        method, problem = method_of(config, members, start), problem_of(config)
        drawn = nqp.simulate(method, problem, budget, monte_carlo.replicas, monte_carlo.seed)
        losses = np.asarray(drawn.average)
        results[start] = float(losses.mean()), float(losses.std() / np.sqrt(losses.size))
    return results


def starts(config: TheoryConfig, simulated: dict[int, Simulations]) -> Panel:
    """The loss after N minibatches against the start: linear-noise approximation and simulation.

    Args:
        config: What to compute.
        simulated: What `simulations` returned for every K.

    Returns:
        The panel.
    """
    problem, budget = problem_of(config), config.multiplicative.minibatches
    plain = float(nqp.SGD(config.multiplicative.sgd_lr).expected_loss(problem, budget).average)
    curves = [Curve("SGD", np.array([0.0, 1.0]), np.full(2, plain), look(1))]
    dots, drifted = [], []
    for number in config.quadratic.members:
        grid = sorted({start_near(share * budget, budget, number) for share in np.linspace(0, 1, 23) ** 1.5})
        paths = [method_of(config, number, at).trajectory(problem, budget) for at in grid]
        losses = np.array([float(path.loss.average) for path in paths])
        curves.append(Curve(f"K = {number}", np.array(grid) / budget, losses, look(number, "line")))
        positions = np.array(list(simulated[number])) / budget
        means, errors = np.array(list(simulated[number].values())).T
        name = f"K = {number} simulated"
        dots.append(Curve(name, positions, means, look(number, "dots"), error=errors, legend=False))
        _, floor = drifted_floor(config, number)
        drifted.append(
            Curve(
                f"K = {number} at the drifted factor",
                np.zeros(1),
                np.array([floor]),
                look(number, "open"),
                legend=False,
            )
        )
    return Panel(
        "multiplicative-start",
        f"N = {budget} minibatches",
        "start T0 / N",
        "expected loss after N minibatches",
        [*curves, *dots, *drifted],
    )


def drift(config: TheoryConfig) -> Panel:
    """The factor's slow drift along the solution manifold: equation and simulation.

    Args:
        config: What to compute.

    Returns:
        The panel.
    """
    given = config.multiplicative
    lr, rounds = given.drift_lr, given.drift_rounds
    # Label, weights in the group, base learning rate, factor on the base gradients, look.
    mean = 1 / _DRIFT_MEMBERS
    cases = [
        ("1 weight", 1, lr, mean, 2),
        (f"{given.directions} weights", given.directions, lr, mean, 10),
        ("1 weight, summed", 1, 0.4 * lr, 1.0, 5),
    ]
    curves, dots = [], []
    for label, directions, base_lr, scale, number in cases:
        late = nqp.MultiplicativeLatePhase(_DRIFT_MEMBERS, base_lr, lr, scale)
        problem = nqp.Problem(nqp.power_law(directions), initial_mean=0.0)
        times = np.unique(np.linspace(0, rounds, 81).astype(int))
        path = late.drift(problem, times)
        curves.append(Curve(label, times.astype(np.float64), path, look(number, "line")))
        few = np.unique(np.linspace(0, rounds, 6).astype(int))[1:]
        counts = [int(time) * _DRIFT_MEMBERS for time in few]
        monte_carlo = config.monte_carlo
        snapshots = nqp.simulate_weights(late, problem, counts, monte_carlo.replicas, monte_carlo.seed)
        factors = [snapshot.phi for snapshot in snapshots if snapshot.phi is not None]
        means = np.array([factor.mean() for factor in factors])
        errors = np.array([factor.std() / np.sqrt(factor.size) for factor in factors])
        name = f"{label} simulated"
        dots.append(Curve(name, few.astype(np.float64), means, look(number, "dots"), error=errors, legend=False))
    return Panel(
        "multiplicative-drift",
        f"Drift of the factor, K = {_DRIFT_MEMBERS}",
        "rounds since the start",
        "factor $\\varphi$",
        [*curves, *dots],
        y_log=False,
    )


def figure(panels: list[Panel]) -> Figure:
    """Both panels with their text.

    Args:
        panels: What `starts` and `drift` returned.

    Returns:
        The figure.
    """
    text = (
        "First panel: lines are the linear-noise approximation along the path, dots the simulated process with standard"
        " errors. A start at 0 drags the factor to where the effective learning rate is larger; the noise then drags"
        " it back slowly, which the approximation along the path leaves out and the hollow marks put in. Second panel:"
        " that slow drift of the factor from 1, equation (lines) and simulation (dots)."
    )
    return Figure("Multiplicative late-phase weights", text, panels)


def table(config: TheoryConfig, simulated: dict[int, Simulations]) -> Table:
    """Losses after N minibatches for two starts, beside the approximations.

    Args:
        config: What to compute.
        simulated: What `simulations` returned for every K.

    Returns:
        One row per K.
    """
    problem, budget = problem_of(config), config.multiplicative.minibatches
    rows: list[list[str | int | float]] = []
    for number in config.quadratic.members:
        row: list[str | int | float] = [number]
        for share in (0.0, 0.25):
            start = start_near(share * budget, budget, number)
            mean, error = simulated[number][start]
            path = method_of(config, number, start).trajectory(problem, budget)
            row += [f"{mean:.5f} ± {error:.5f}", float(path.loss.average)]
        late = method_of(config, number)
        place, floor = drifted_floor(config, number)
        row += [float(late.steady_state(problem, 1.0).average), late.landing(problem)]
        rows.append([*row, float(late.steady_state(problem, late.landing(problem)).average), place, floor])
    sgd = float(nqp.SGD(config.multiplicative.sgd_lr).steady_state(problem).average)
    header = [
        "K",
        "T0 = 0, simulated",
        "path",
        "T0 = N/4, simulated",
        "path",
        "floor at 1",
        "landing",
        "floor there",
        "drifted to",
        "floor there",
    ]
    text = (
        f"One group of {problem.directions} weights started at 0 (w* = 1), N = {budget} minibatches of batch size"
        f" {problem.batch_size:g}; SGD's floor is {sgd:.6f}. Path is the linear-noise approximation along the path;"
        " floors are its steady states at a fixed factor; landing is where gradient flow from 0 takes the factor."
    )
    return Table("multiplicative", "Multiplicative late-phase weights", text, header, rows, digits=6)


def drifted_floor(config: TheoryConfig, members: int) -> tuple[float, float]:
    """Where the factor has drifted by the end after a start at 0, and the noise floor there.

    Args:
        config: What to compute.
        members: K.

    Returns:
        The factor and the steady-state loss at it.
    """
    problem, late = problem_of(config), method_of(config, members)
    rounds = config.multiplicative.minibatches // members
    landed = float(late.trajectory(problem, rounds * members).phi)
    place = float(late.drift(problem, [rounds], landed)[0])
    return place, float(late.steady_state(problem, place).average)
