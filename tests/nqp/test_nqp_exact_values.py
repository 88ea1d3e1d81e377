"""Expected losses against 50-digit closed forms, and the stationary moments against their defining equations."""

import nqp_reference
import numpy as np
import pytest

from latephase import nqp
from latephase.nqp.descent import Descent, Momentum, powers

CASES = pytest.mark.parametrize("case", nqp_reference.CASES, ids=lambda case: case.id)


@CASES
def test_losses(case):
    loss = case.method.expected_loss(case.problem, list(case.points))
    average, members = np.array(list(case.points.values())).T
    np.testing.assert_allclose(loss.average, average, rtol=1e-9)
    np.testing.assert_allclose(loss.members, members, rtol=1e-9)


@CASES
def test_one_count_gives_floats(case):
    count, (average, members) = list(case.points.items())[-1]
    loss = case.method.expected_loss(case.problem, count)
    assert isinstance(loss.average, float)
    assert isinstance(loss.members, float)
    assert loss == pytest.approx((average, members), rel=1e-9)


@CASES
def test_steady_state(case):
    loss = case.method.steady_state(case.problem)
    assert isinstance(loss.average, float)
    assert loss == pytest.approx(case.steady, rel=1e-9)


def test_every_value_of_the_shared_file():
    shared = nqp_reference.shared_file()
    compared = 0
    for case in shared["cases"]:
        problem = nqp_reference.shared_problem(case["input"])
        method = nqp_reference.shared_method(case["input"])
        for point in [*case["points"], case["steady_state"]]:
            average = point["loss_averaged_model"]
            expected = (average, point.get("loss_members_mean", average))
            if "minibatches" in point:
                loss = method.expected_loss(problem, point["minibatches"])
            else:
                loss = method.steady_state(problem)
            assert loss == pytest.approx(expected, rel=1e-9), (case["id"], point)
            compared += 1
    assert compared > len(shared["cases"]) > 0


def test_every_start_of_the_shared_file():
    for given in nqp_reference.shared_file()["t0_star"]:
        problem = nqp.Problem([given["h"]], [given["s2"]], given["B"], given["m0"], given["v0"])
        half = given["eta"] / 2
        late = nqp.LatePhase(given["K"], half, half, 1 / given["K"], given["s0sq"])
        assert nqp.optimal_start(late, problem)[0] == pytest.approx(given["T0_star"], rel=1e-12)


def test_every_refusal_of_the_shared_file():
    for given in nqp_reference.shared_file()["must_raise"]:
        problem = nqp.Problem(given["h"], batch_size=given["B"])
        with pytest.raises(ValueError, match="unstable"):
            nqp_reference.shared_method(given).steady_state(problem)


def test_every_multiplicative_value_of_the_shared_file():
    for case in nqp_reference.shared_file()["lna_multiplicative"]["cases"]:
        given = case["input"]
        problem = nqp.Problem(given["h"], given["s2"], given["B"])
        late = nqp.MultiplicativeLatePhase(
            given["K"], given["et"], given["ep"], given["gam"], given["wstar"], given["phi0"]
        )
        expected = (case["loss_averaged_model"], case["loss_members_mean"])
        assert late.steady_state(problem) == pytest.approx(expected, rel=1e-9), case["id"]
        assert late.sharpness(problem) == pytest.approx(case["lambda_max_S"], rel=1e-9)
        assert late.balance(problem) == pytest.approx(case["phi_balance"], rel=1e-9)


@pytest.mark.parametrize("x", [0.0, 1e-12, 1e-3, 0.5, 1.0, 1.5, 2.0 - 1e-9, 2.0, 2.5])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_powers_and_their_sum(x, count):
    from fractions import Fraction

    a = 1 - Fraction(x)
    power, total = powers(np.array([x]), count)
    assert power[0] == pytest.approx(float(a**count), rel=1e-12)
    if count <= 7:
        exact = float(sum((a ** (2 * j) for j in range(count)), Fraction(0)))
        assert total[0] == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(("mu", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.5, True), (0.99, True)])
@pytest.mark.parametrize("share", [1e-6, 0.1, 0.5, 0.99])
def test_stationary_variance_solves_the_lyapunov_equation(mu, nesterov, share):
    momentum = Momentum(mu, nesterov)
    h, s = np.array([0.3, 2.0]), np.array([1.5, 0.2])
    descent = Descent(h, s, share * momentum.limit / h.max(), momentum)
    step = descent.step()
    for i in range(2):
        a, q = step.transition[:, :, i], step.noise[:, :, i]
        solved = np.linalg.solve(np.eye(a.size) - np.kron(a, a), q.ravel())
        assert descent.stationary_variance()[i] == pytest.approx(solved[0], rel=1e-7)


@pytest.mark.parametrize(("mu", "nesterov"), [(0.0, False), (0.7, False), (0.7, True)])
def test_stability_limit_is_where_the_spectral_radius_is_one(mu, nesterov):
    momentum = Momentum(mu, nesterov)
    for share, stable in [(1 - 1e-6, True), (1 + 1e-6, False)]:
        step = Descent(np.ones(1), np.ones(1), share * momentum.limit, momentum).step()
        radius = np.abs(np.linalg.eigvals(step.transition[:, :, 0])).max()
        assert (radius < 1) == stable
