"""Edge cases and refusals: every error names the argument, its value and the limit; nothing else raises."""

import ast
import doctest
import importlib
import pkgutil
import sys
from pathlib import Path

import numpy as np
import pytest

from latephase import nqp

PROBLEM = nqp.Problem(nqp.power_law(5))
ONE = nqp.Problem([1.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"curvature": [1.0, -0.5]}, r"curvature\[1\] = -0.5 is out of range; need finite values >= 0"),
        ({"curvature": [np.inf]}, r"curvature\[0\] = inf is out of range"),
        ({"curvature": []}, r"curvature has shape \(0,\); need \(n,\) with n >= 1"),
        ({"curvature": 1.0}, r"curvature has shape \(\); need \(n,\)"),
        ({"curvature": [[1.0]]}, r"curvature has shape \(1, 1\)"),
        ({"curvature": "flat"}, "curvature = 'flat' is not an array of real numbers"),
        ({"curvature": [1.0, 0.0]}, r"noise_variance = None means 1/curvature, but curvature\[1\] = 0"),
        ({"curvature": [1.0, 2.0], "noise_variance": [1.0, -1.0]}, r"noise_variance\[1\] = -1 is out of range"),
        (
            {"curvature": [1.0, 2.0], "noise_variance": [1.0]},
            r"noise_variance has shape \(1,\); need a scalar or \(2,\)",
        ),
        ({"curvature": [1.0], "noise_variance": [np.nan]}, r"noise_variance\[0\] = nan"),
        ({"curvature": [1.0], "batch_size": 0}, "batch_size = 0 is out of range; need a finite number > 0"),
        ({"curvature": [1.0], "batch_size": True}, "batch_size = True is not a real number"),
        ({"curvature": [1.0, 2.0], "initial_mean": [1.0] * 3}, r"initial_mean has shape \(3,\)"),
        ({"curvature": [1.0], "initial_mean": np.inf}, r"initial_mean\[0\] = inf is out of range; need finite values"),
        ({"curvature": [1.0], "initial_variance": -1.0}, r"initial_variance\[0\] = -1 is out of range"),
    ],
)
def test_bad_problems(arguments, message):
    with pytest.raises(ValueError, match=message):
        nqp.Problem(**arguments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nqp.power_law(0), "n = 0 is too small; need an integer >= 1"),
        (lambda: nqp.power_law(2.5), "n = 2.5 is not an integer; need an integer >= 1"),
        (lambda: nqp.power_law(5, -1), "power = -1 is out of range; need a finite number >= 0"),
        (lambda: nqp.SGD(-0.1), "lr = -0.1 is out of range; need a finite number >= 0"),
        (lambda: nqp.SGD("fast"), "lr = 'fast' is not a real number; need a finite number >= 0"),
        (lambda: nqp.SGD(0.1, 0), "batch_multiplier = 0 is too small; need an integer >= 1"),
        (lambda: nqp.SGD(0.1, momentum=1.0), "momentum = 1 is out of range; need 0 <= momentum < 1"),
        (lambda: nqp.SGD(0.1, nesterov=True), "nesterov = True needs momentum > 0"),
        (lambda: nqp.LatePhase(0, 0.1, 0.1, 1.0), "members = 0 is too small; need an integer >= 1"),
        (lambda: nqp.LatePhase(True, 0.1, 0.1, 1.0), "members = True is not an integer"),
        (lambda: nqp.LatePhase(2, -1, 0.1, 1.0), "base_lr = -1 is out of range"),
        (lambda: nqp.LatePhase(2, 0.1, np.nan, 1.0), "late_lr = nan is out of range"),
        (lambda: nqp.LatePhase(2, 0.1, 0.1, 0.0), "base_gradient_scale = 0 is out of range; need a finite number > 0"),
        (lambda: nqp.LatePhase(2, 0.1, 0.1, 1.0, -1.0), "perturbation_variance = -1 is out of range"),
        (lambda: nqp.LatePhase(2, 0.1, 0.1, 1.0, start=-3), "start = -3 is too small; need an integer >= 0"),
        (lambda: nqp.LatePhase(2, 0.1, 0.1, 1.0, sgd_lr=-3), "sgd_lr = -3 is out of range"),
        (lambda: nqp.LatePhase(2, 0.1, 0.1, 1.0, optimizer_state="keep"), "optimizer_state = 'keep' is unknown"),
        (lambda: nqp.Ensemble(0.1, 0), "members = 0 is too small"),
        (lambda: nqp.SWA(0.1, 0), "window = 0 is too small; need an integer >= 1"),
        (lambda: nqp.EMA(0.1, 1.0), "decay = 1 is out of range; need 0 <= decay < 1"),
        (lambda: nqp.EMA(0.1, -0.1), "decay = -0.1 is out of range; need 0 <= decay < 1"),
        (lambda: nqp.Lookahead(0.1, 0, 0.5), "k = 0 is too small"),
        (lambda: nqp.Lookahead(0.1, 5, 0.0), "alpha = 0 is out of range; need 0 < alpha <= 1"),
        (lambda: nqp.Lookahead(0.1, 5, 1.5), "alpha = 1.5 is out of range; need 0 < alpha <= 1"),
        (lambda: nqp.LinearDecay(-1, 5), "begin = -1 is too small; need an integer >= 0"),
        (lambda: nqp.LinearDecay(5, 4), "end = 4 is too small; need an integer >= 5"),
        (lambda: nqp.LinearDecay(1, 5, -0.1), "final = -0.1 is out of range; need a finite number >= 0"),
    ],
)
def test_bad_methods(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("method", "counts", "message"),
    [
        (nqp.SGD(0.1), -1, "minibatches = -1 is too small; need an integer >= 0"),
        (nqp.SGD(0.1), 2.5, "minibatches = 2.5 is not an integer"),
        (nqp.SGD(0.1), [1, 2.5], r"minibatches\[1\] = 2.5 is not an integer"),
        (nqp.SGD(0.1), [3, 3], r"minibatches\[1\] = 3 does not exceed minibatches\[0\] = 3; need an increasing"),
        (nqp.SGD(0.1), [], "minibatches is empty"),
        (nqp.SGD(0.1, 4), 6, r"minibatches = 6 .* rounds of 4 .* possible counts are 0 \+ 4 \* j, the nearest 4 and 8"),
        (
            nqp.LatePhase(5, 0.1, 0.1, 1.0, start=3),
            [2, 3, 9],
            r"minibatches = 9 .* rounds of 5 minibatches after 3; .* 0\.\.3, then 3 \+ 5 \* j, the nearest 8 and 13",
        ),
        (nqp.Ensemble(0.1, 4), 6, "minibatches = 6 is not a whole number of rounds of 4"),
        (nqp.Lookahead(0.1, 5, 0.5), 6, "minibatches = 6 is not a whole number of rounds of 5"),
        (nqp.SWA(0.1, window=10), 8, "minibatches = 8 is too small for window = 10; need >= 9"),
        (nqp.SWA(0.1), 0, "minibatches = 0 is too small for window = None; need >= 1"),
    ],
    ids=str,
)
def test_impossible_counts(method, counts, message):
    with pytest.raises(ValueError, match=message):
        method.expected_loss(PROBLEM, counts)
    with pytest.raises(ValueError, match=message):
        nqp.simulate(method, PROBLEM, counts, replicas=2, seed=0)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (nqp.SGD(2.0), "unstable: lr = 2 >= 2; need lr < 2"),
        (nqp.SGD(0.0), "no steady state: lr = 0 must be > 0"),
        (nqp.SGD(3.0, momentum=0.5), "unstable: lr = 3 >= 3; need lr < 3"),
        (nqp.SGD(1.5, momentum=0.5, nesterov=True), "unstable: lr = 1.5 >= 1.5; need lr < 1.5"),
        (nqp.SGD(0.5, schedule=nqp.LinearDecay(1, 9)), r"no steady state: lr \* schedule.final = 0 must be > 0"),
        (
            nqp.LatePhase(5, 0.5, 0.5, 1.0),
            r"unstable: effective_lr \(= late_lr \+ base_gradient_scale \* members \* base_lr\) = 3 >= 2; "
            "need effective_lr < 2",
        ),
        (nqp.LatePhase(5, 0.2, 1.0, 1.0), "= 2 >= 2"),
        (nqp.LatePhase(5, 0.0, 0.0, 1.0, 0.1), "= 0 must be > 0"),
        (nqp.LatePhase(5, 0.1, 0.1, 1.0, schedule=nqp.LinearDecay(1, 9)), r"schedule.final \* .* = 0 must be > 0"),
        (nqp.Ensemble(2.0, 3), "unstable: lr = 2 >= 2"),
        (nqp.SWA(2.0), "unstable: lr = 2 >= 2"),
        (nqp.SWA(0.0, 5), "no steady state: lr = 0"),
        (nqp.EMA(2.5, 0.9), "unstable: lr = 2.5 >= 2"),
        (nqp.Lookahead(2.0, 4, 0.5), "unstable: lr = 2 >= 2"),
        (nqp.Lookahead(2.5, 5, 0.5), r"unstable: lr = 2.5 >= 2.2457"),
    ],
    ids=str,
)
def test_unstable_steady_states_raise_and_finite_times_do_not(method, message):
    with pytest.raises(ValueError, match=message):
        method.steady_state(ONE)
    early, late = method.expected_loss(ONE, [60, 1200]).average
    assert 0 <= early < np.inf
    assert 0 <= late <= np.inf
    if "unstable" in message and method.effective_lr > method.max_lr(ONE):
        assert late > early


@pytest.mark.parametrize(
    "method",
    [
        nqp.SGD(0.7),
        nqp.SGD(0.7, momentum=0.4),
        nqp.LatePhase(5, 0.1, 0.2, 1.0),
        nqp.LatePhase(5, 0.1, 0.2, 1.0, momentum=0.4, nesterov=True),
        nqp.Ensemble(0.7, 5),
        nqp.SWA(0.7, 5),
        nqp.SWA(0.7),
        nqp.EMA(0.7, 0.9),
        nqp.Lookahead(0.7, 5, 0.5),
    ],
    ids=str,
)
def test_flat_and_noiseless_directions(method):
    flat = nqp.Problem([0.0, 0.0], [1.0, 0.0], initial_mean=3.0)
    assert tuple(method.expected_loss(flat, 10)) == (0.0, 0.0)
    assert tuple(method.steady_state(flat)) == (0.0, 0.0)
    assert method.max_lr(flat) == np.inf
    quiet = nqp.Problem([1.0, 0.1], 0.0, initial_mean=3.0)
    assert method.expected_loss(quiet, 10).average > 0
    assert tuple(method.steady_state(quiet)) == (0.0, 0.0)
    mixed = nqp.Problem([0.5, 0.0], [2.0, 7.0])
    alone = nqp.Problem([0.5], [2.0])
    assert tuple(method.expected_loss(mixed, 10)) == pytest.approx(tuple(method.expected_loss(alone, 10)), rel=1e-12)
    assert tuple(method.steady_state(mixed)) == pytest.approx(tuple(method.steady_state(alone)), rel=1e-12)


def test_frozen_differences_and_standing_still():
    problem = nqp.Problem([1.0, 0.5, 0.0], [1.0, 1.0, 1.0])
    frozen = nqp.LatePhase(4, 0.1, 0.0, 1.0, perturbation_variance=0.3)
    for loss in (frozen.expected_loss(problem, 400), frozen.steady_state(problem)):
        assert loss.members - loss.average == pytest.approx(0.5 * (1 - 1 / 4) * 0.3 * 1.5, rel=1e-12)
    still = nqp.LatePhase(4, 0.0, 0.0, 1.0, start=2)
    np.testing.assert_allclose(still.expected_loss(problem, [0, 1, 2, 42]).average, 0.75, rtol=1e-14)


@pytest.mark.parametrize("x", [1.0, 1.5, 2.0, 2.5])
def test_rates_at_and_beyond_one(x):
    problem = nqp.Problem([2.0], [3.0], initial_mean=1.0, initial_variance=0.5)
    mean, variance = 1.0, 0.5
    for count in range(6):
        loss = nqp.SGD(x / 2).expected_loss(problem, count).average
        assert loss == pytest.approx(mean**2 + variance, rel=1e-12)
        mean, variance = (1 - x) * mean, (1 - x) ** 2 * variance + x**2 * 3.0


def test_overflow_is_infinite_and_what_is_zero_stays_zero():
    assert nqp.SGD(5.0).expected_loss(ONE, 10_000).average == np.inf
    assert nqp.SGD(9.0, momentum=0.5).expected_loss(ONE, 10_000).average == np.inf
    assert nqp.EMA(5.0, 0.5).expected_loss(ONE, 10_000).average == np.inf
    at_optimum = nqp.Problem([1.0], 0.0, initial_mean=0.0)
    assert nqp.SGD(5.0).expected_loss(at_optimum, 10_000).average == 0.0
    assert nqp.Lookahead(5.0, 1, 0.9).expected_loss(at_optimum, 10_000).average == 0.0
    # The differences explode, but without noise or perturbation there are none.
    quiet = nqp.LatePhase(2, 0.0, 5.0, 1.0).expected_loss(nqp.Problem([1.0], 0.0), 200)
    assert quiet.members == quiet.average


def test_small_rates_do_not_cancel():
    """With lr h m << 1 the closed forms of SWA and EMA lose all digits; the recursions keep them."""
    problem = nqp.Problem([1e-9], [1.0], initial_mean=0.0)
    # To leading order: n random-walk steps of variance q, averaged with weights.
    q = 1e-18
    m = 50
    swa = nqp.SWA(1.0, window=m).expected_loss(problem, m).average
    walk = sum((m - j) ** 2 for j in range(m)) / m**2
    assert swa == pytest.approx(0.5e-9 * q * walk, rel=1e-6)
    sgd = nqp.SGD(1.0).expected_loss(problem, m).average
    assert sgd == pytest.approx(0.5e-9 * q * m, rel=1e-6)
    steady = nqp.SWA(1.0, window=m).steady_state(problem).average
    assert steady == pytest.approx(nqp.SGD(1.0).steady_state(problem).average, rel=1e-6)


def test_problems_do_not_change():
    curvature = np.array([1.0, 0.5])
    problem = nqp.Problem(curvature)
    curvature[0] = 7.0
    assert problem.curvature[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        problem.curvature[0] = 2.0
    assert repr(problem) == "Problem(directions=2, batch_size=1)"


def test_lookahead_limit_is_exact():
    for k in (1, 3, 4, 5):
        for alpha in (0.2, 0.5, 1.0):
            limit = nqp.Lookahead(1.0, k, alpha).max_lr(ONE)
            for lr, inside in [(limit * (1 - 1e-9), True), (limit * (1 + 1e-9), False)]:
                z = alpha * (1 - (1 - lr) ** k)
                assert (0 < z < 2) == inside


def test_examples_in_the_docstrings():
    tried = 0
    for module in pkgutil.iter_modules(nqp.__path__, nqp.__name__ + "."):
        results = doctest.testmod(importlib.import_module(module.name))
        assert results.failed == 0, module.name
        tried += results.attempted
    assert tried > 40


def test_every_public_object_has_an_example():
    for name in nqp.__all__:
        if name not in ("Snapshot", "Trajectory"):
            assert ">>> " in getattr(nqp, name).__doc__, name


def test_needs_numpy_and_the_standard_library_only():
    allowed = {"numpy", *sys.stdlib_module_names}
    for file in Path(nqp.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [str(node.module)]
            for name in names:
                own = name == "latephase.nqp" or name.startswith("latephase.nqp.")
                assert own or name.split(".")[0] in allowed or name == "latephase", (file.name, name)
