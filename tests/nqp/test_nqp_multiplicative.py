"""The multiplicative case: its exact special cases, its known values, and the real thing by simulation."""

import numpy as np
import pytest

from latephase import nqp

SCALAR = nqp.Problem([1.0], initial_mean=0.0)
GROUP = nqp.Problem(nqp.power_law(20), initial_mean=0.0)
FAR = nqp.Problem(nqp.power_law(20), batch_size=16, initial_mean=-1.0)


def far(members, **options):
    return nqp.MultiplicativeLatePhase(
        members, 0.2, 0.05, 1 / members, perturbation_variance=0.02**2, sgd_lr=0.2, **options
    )


NQM20 = {"h": nqp.power_law(20), "s": None, "optimum": 1.0, "phi": 1.0}
MIXED = {"h": [1.0, 0.5, 0.1], "s": [0.3, 1.0, 2.0], "optimum": [1.0, -0.5, 2.0], "phi": 0.8}
UNIT = {"h": [1.0], "s": [1.0], "optimum": 1.0, "phi": 1.0}


@pytest.mark.parametrize(
    ("problem", "batch", "rates", "loss", "sharpness", "balance"),
    [
        (UNIT, 1, (1, 0.01, 0.01, 1.0), (0.005050505050505, 0.005050505050505), 0.02, 1.0),
        (UNIT, 1, (5, 0.01, 0.01, 0.2), (0.001010101010101, 0.003020151261357), 0.02, 1.495348781221),
        (NQM20, 4, (2, 0.05, 0.02, 0.5), (0.00807177646224, 0.01040428119576), 0.09945558688252, 0.9457416090032),
        (NQM20, 4, (10, 0.05, 0.02, 0.1), (0.001614355292448, 0.005812863812779), 0.09945558688252, 1.414213562373),
        (MIXED, 2, (4, 0.1, 0.05, 1.0), (0.006483214885595, 0.009929476567838), 0.3470341401665, 0.789318180182),
    ],
)
def test_known_values(problem, batch, rates, loss, sharpness, balance):
    quadratic = nqp.Problem(problem["h"], problem["s"], batch)
    late = nqp.MultiplicativeLatePhase(*rates, problem["optimum"], problem["phi"])
    assert late.steady_state(quadratic) == pytest.approx(loss, rel=1e-9)
    assert late.sharpness(quadratic) == pytest.approx(sharpness, rel=1e-9)
    assert late.balance(quadratic) == pytest.approx(balance, rel=1e-9)
    assert late.steady_state(quadratic, late.initial_phi) == late.steady_state(quadratic)


@pytest.mark.parametrize(
    ("members", "at_one", "at_landing"),
    [(2, 0.007598, 0.018897), (5, 0.003039, 0.007559), (10, 0.001520, 0.003779)],
)
def test_known_floors_and_landing(members, at_one, at_landing):
    late = far(members)
    assert late.steady_state(FAR).average == pytest.approx(at_one, abs=5.1e-7)
    assert late.landing(FAR) == pytest.approx(1.6707, abs=5e-5)
    assert late.landing(FAR) == pytest.approx(np.sqrt((1 + np.sqrt(1 + 4 * 20 * 0.05 / 0.2)) / 2), rel=1e-12)
    # The table rounds the landing to 1.6707 first.
    assert late.steady_state(FAR, 1.6707).average == pytest.approx(at_landing, abs=1.1e-6)
    assert nqp.SGD(0.2).steady_state(FAR).average == pytest.approx(0.011783, abs=5e-7)


def test_small_rates_approach_the_linear_law():
    for rate, ratio in [(0.05, 1.0256), (0.005, 1.0025), (0.0005, 1.00025)]:
        late = nqp.MultiplicativeLatePhase(5, rate / 2, rate / 2, 0.2)
        linear = rate / (4 * 5)
        assert late.steady_state(SCALAR).average / linear == pytest.approx(ratio, abs=5e-5)


def test_landing_of_equal_rates_is_the_golden_ratio():
    late = nqp.MultiplicativeLatePhase(5, 0.01, 0.01, 0.2)
    start_at_zero = nqp.Problem([1.0], initial_mean=-1.0)
    assert late.landing(start_at_zero) ** 2 == pytest.approx((1 + np.sqrt(5)) / 2, rel=1e-12)
    # The noise-free path of small steps goes there.
    quiet = nqp.Problem([1.0], [0.0], initial_mean=-1.0)
    slow = nqp.MultiplicativeLatePhase(5, 1e-3, 1e-3, 0.2)
    assert slow.trajectory(quiet, 5 * 6000).phi == pytest.approx(slow.landing(quiet), rel=3e-4)


@pytest.mark.parametrize("initial", [-1.0, 0.0, 3.0, 30.0])
@pytest.mark.parametrize("phi", [0.5, -2.0])
def test_landing_conserves_the_flow_invariant(initial, phi):
    late = nqp.MultiplicativeLatePhase(3, 0.02, 0.07, 0.5, [1.0, -2.0, 5.0], phi, start=4, sgd_lr=0.1)
    problem = nqp.Problem([1.0, 0.3, 0.0], 1.0, initial_mean=initial)
    landed = late.landing(problem)
    optimum = np.array([1.0, -2.0])
    begun = optimum + (1 - 0.1 * np.array([1.0, 0.3])) ** 4 * initial

    def invariant(theta, factor):
        return np.sum(theta**2) / (0.5 * 0.02) - 3 * factor**2 / 0.07

    assert np.sign(landed) == np.sign(phi)
    assert invariant(optimum / landed, landed) == pytest.approx(invariant(begun / phi, phi), rel=1e-9)


def test_frozen_base_weights_make_one_direction_additive_and_exact():
    problem = nqp.Problem([0.7], [1.2], batch_size=2, initial_mean=-0.4)
    late = nqp.MultiplicativeLatePhase(4, 0.0, 0.05, 1.0, 2.0, 0.8, 0.01, start=6, sgd_lr=0.1)
    theta = (2.0 - 0.4 * 0.93**6) / 0.8
    counts = [6, 10, 50, 406]
    # Only the mean error is fixed before the start here: no plain noise, so theta is a number.
    calm = nqp.Problem([0.7], [1.2], batch_size=2, initial_mean=-0.4 * 0.93**6)
    at_once = nqp.MultiplicativeLatePhase(4, 0.0, 0.05, 1.0, 2.0, 0.8, 0.01)
    additive = nqp.LatePhase(4, 0.0, 0.05 * theta**2, 1.0, 0.01 * theta**2)
    counts = [0, 4, 44, 400]
    got, expected = at_once.trajectory(calm, counts).loss, additive.expected_loss(calm, counts)
    np.testing.assert_allclose(got.average, expected.average, rtol=1e-11)
    np.testing.assert_allclose(got.members, expected.members, rtol=1e-11)
    assert late.trajectory(problem, 406).phi == pytest.approx(at_once.trajectory(calm, 400).phi, rel=1e-12)


def test_frozen_factors_are_additive_and_exact():
    problem = nqp.Problem([0.7, 0.1, 0.0], [1.2, 3.0, 1.0], initial_mean=-0.4, initial_variance=0.3)
    late = nqp.MultiplicativeLatePhase(4, 0.1, 0.0, 0.5, [2.0, -1.0, 0.5], 0.8, start=6, sgd_lr=0.2)
    additive = nqp.LatePhase(4, 0.1 * 0.8**2, 0.0, 0.5, start=6, sgd_lr=0.2)
    counts = [0, 3, 6, 10, 46, 406]
    path, expected = late.trajectory(problem, counts), additive.expected_loss(problem, counts)
    np.testing.assert_allclose(path.loss.average, expected.average, rtol=1e-11)
    np.testing.assert_allclose(path.loss.members, expected.members, rtol=1e-11)
    np.testing.assert_array_equal(path.phi, 0.8)
    assert late.steady_state(problem) == pytest.approx(tuple(additive.steady_state(problem)), rel=1e-11)
    assert late.landing(problem) == 0.8


def test_trajectory_on_the_manifold_ends_in_the_steady_state():
    late = nqp.MultiplicativeLatePhase(4, 0.1, 0.05, 1.0, [1.0, -0.5, 2.0], 0.8, 0.01)
    problem = nqp.Problem([1.0, 0.5, 0.1], [0.3, 1.0, 2.0], batch_size=2, initial_mean=0.0)
    path = late.trajectory(problem, 4 * 5000)
    assert path.phi == pytest.approx(0.8, rel=1e-12)
    assert path.loss == pytest.approx(tuple(late.steady_state(problem)), rel=1e-9)


def test_steady_state_solves_the_lyapunov_equation():
    late = nqp.MultiplicativeLatePhase(3, 0.1, 0.2, 1.0, [1.0, -0.5, 2.0], 1.3)
    h, s = np.array([1.0, 0.5, 0.1]), np.array([0.3, 1.0, 2.0])
    theta = np.array([1.0, -0.5, 2.0]) / 1.3
    m = 0.3 * 1.3**2 * np.eye(3) + 0.2 * np.outer(theta, theta)
    a, noise = np.eye(3) - m * h, (m * h) @ np.diag(s / 3) @ (m * h).T
    covariance = np.linalg.solve(np.eye(9) - np.kron(a, a), noise.ravel()).reshape(3, 3)
    loss = late.steady_state(nqp.Problem(h, s))
    assert loss.average == pytest.approx(0.5 * h @ np.diag(covariance), rel=1e-10)


@pytest.mark.parametrize(
    ("late", "problem", "rounds", "printed"),
    [
        ((5, 0.05, 0.05, 0.2), SCALAR, [500, 2000, 4000, 8000], [1.194, 1.418, 1.481, 1.495]),
        ((5, 0.05, 0.05, 0.2), GROUP, [1000, 4000, 8000], [1.164, 1.438, 1.492]),
        ((5, 0.02, 0.05, 1.0), SCALAR, [200, 500, 2000], [1.081, 1.155, 1.250]),
    ],
)
def test_known_drift(late, problem, rounds, printed):
    method = nqp.MultiplicativeLatePhase(*late)
    np.testing.assert_allclose(method.drift(problem, rounds), printed, atol=5.1e-4)
    balance = method.balance(problem)
    assert method.drift(problem, [200_000])[0] == pytest.approx(balance, rel=1e-6)
    np.testing.assert_allclose(method.drift(problem, rounds, balance), balance, rtol=1e-12)
    np.testing.assert_allclose(method.drift(problem, rounds, -1.0), -method.drift(problem, rounds), rtol=1e-12)


def test_drift_is_what_happens():
    method = nqp.MultiplicativeLatePhase(5, 0.02, 0.05, 1.0)
    counts = [1000, 2500]
    for snapshot, predicted, measured in zip(
        nqp.simulate_weights(method, SCALAR, counts, replicas=400, seed=0),
        method.drift(SCALAR, [200, 500]),
        [1.069, 1.139],
        strict=True,
    ):
        error = snapshot.phi.std() / 20
        assert abs(snapshot.phi.mean() - measured) < 4 * np.hypot(error, 0.001)
        assert snapshot.phi.mean() == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize(
    ("members", "start", "measured"),
    [(2, 0, 0.01090), (2, 600, 0.00729), (5, 0, 0.00666), (5, 600, 0.00302), (10, 0, 0.00373), (10, 600, 0.00150)],
)
def test_known_losses_of_the_real_process(members, start, measured):
    drawn = nqp.simulate(far(members, start=start), FAR, 2400, replicas=400, seed=members).average
    error = np.hypot(drawn.std() / np.sqrt(400), 0.022 * measured)
    assert abs(drawn.mean() - measured) < 4 * error


@pytest.mark.parametrize("members", [2, 5, 10])
def test_trajectory_after_a_late_start_is_what_happens(members):
    late = far(members, start=200)
    counts = [100, 200, 400, 800]
    exact, drawn = late.trajectory(FAR, counts).loss, nqp.simulate(late, FAR, counts, replicas=600, seed=3)
    for value, sample in zip(exact, drawn, strict=True):
        ratio = sample.mean(axis=0) / value
        error = sample.std(axis=0) / np.sqrt(600) / value
        # Before the start it is exact; after it good to a few percent.
        assert np.all(np.abs(ratio - 1) < np.where(np.array(counts) <= 100, 0.0, 0.06) + 4 * error), ratio


def test_place_on_the_manifold_after_an_early_start_explains_the_loss():
    """From w = 0 the factor lands far out and drifts back; the floor at the drifted place is the loss."""
    members, minibatches = 2, 2400
    late = far(members)
    settled = late.trajectory(FAR, minibatches)
    place = late.drift(FAR, [minibatches // members], settled.phi)[0]
    (end,) = nqp.simulate_weights(late, FAR, minibatches, replicas=500, seed=1)
    loss = (0.5 * end.average**2 @ FAR.curvature).mean()
    assert end.phi.mean() == pytest.approx(place, rel=0.03)
    assert loss == pytest.approx(late.steady_state(FAR, place).average, rel=0.12)
    assert settled.loss.average > 1.6 * loss  # without the drift the floor is far too high


def test_far_start_with_a_large_rate_diverges():
    problem = nqp.Problem(nqp.power_law(20), batch_size=16, initial_mean=-5.0)
    late = nqp.MultiplicativeLatePhase(5, 0.2, 0.2, 0.2, perturbation_variance=0.02**2)
    lost = nqp.simulate(late, problem, 800, replicas=50, seed=0).average
    assert not (lost < 1e3).any()
    assert late.trajectory(problem, 800).loss.average > 1e3
    later = nqp.MultiplicativeLatePhase(5, 0.2, 0.2, 0.2, perturbation_variance=0.02**2, start=200)
    assert (nqp.simulate(later, problem, 800, replicas=50, seed=0).average < 10).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_phi": 0.0}, "initial_phi = 0 is not on the solution manifold"),
        ({"initial_phi": np.nan}, "initial_phi = nan is out of range"),
        ({"members": 0}, "members = 0 is too small; need an integer >= 1"),
        ({"base_lr": -0.1}, "base_lr = -0.1 is out of range; need a finite number >= 0"),
        ({"base_gradient_scale": 0}, "base_gradient_scale = 0 is out of range; need a finite number > 0"),
    ],
)
def test_bad_arguments(options, message):
    given = {"members": 2, "base_lr": 0.1, "late_lr": 0.1, "base_gradient_scale": 1.0} | options
    with pytest.raises(ValueError, match=message):
        nqp.MultiplicativeLatePhase(**given)


def test_bad_places_and_problems():
    late = nqp.MultiplicativeLatePhase(2, 0.1, 0.1, 1.0)
    with pytest.raises(ValueError, match=r"unstable: sharpness = 5 at phi = 5; need 0 < sharpness < 2"):
        nqp.MultiplicativeLatePhase(2, 0.1, 0.0, 1.0).steady_state(SCALAR, 5.0)
    with pytest.raises(ValueError, match="no steady state: sharpness = 0"):
        nqp.MultiplicativeLatePhase(2, 0.0, 0.0, 1.0).steady_state(SCALAR)
    with pytest.raises(ValueError, match="phi = 0 is not on the solution manifold"):
        late.sharpness(SCALAR, 0.0)
    with pytest.raises(ValueError, match=r"optimum has shape \(2,\); need a scalar or \(1,\)"):
        nqp.MultiplicativeLatePhase(2, 0.1, 0.1, 1.0, [1.0, 2.0]).steady_state(SCALAR)
    with pytest.raises(ValueError, match="late_lr = 0 is out of range; need a finite number > 0"):
        nqp.MultiplicativeLatePhase(2, 0.1, 0.0, 1.0).balance(SCALAR)
    with pytest.raises(ValueError, match="base_lr = 0 is out of range; need a finite number > 0"):
        nqp.MultiplicativeLatePhase(2, 0.0, 0.1, 1.0).landing(SCALAR)
    with pytest.raises(ValueError, match="noise_variance = 0 in every curved direction"):
        late.balance(nqp.Problem([1.0], 0.0))
    with pytest.raises(ValueError, match="optimum = 0 in every curved direction"):
        nqp.MultiplicativeLatePhase(2, 0.1, 0.1, 1.0, 0.0).landing(SCALAR)
    with pytest.raises(ValueError, match="minibatches = 11 is not a whole number of rounds of 2"):
        late.trajectory(SCALAR, 11)


def test_first_round_far_from_the_manifold_is_exact_to_first_order_in_the_noise():
    """One member, one round, written out; the noise is averaged by Gauss-Hermite quadrature, exact for polynomials."""
    h, optimum, phi, error, noise = 0.8, 2.0, 1.3, -1.1, 1e-6
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    theta = (optimum + error) / phi
    gradient = h * (error + np.sqrt(noise) * nodes)
    moved = (theta - 0.3 * phi * gradient) * (phi - 0.2 * theta * gradient) - optimum
    exact = weights @ (0.5 * h * moved**2) / weights.sum()
    late = nqp.MultiplicativeLatePhase(1, 0.3, 0.2, 1.0, optimum, phi)
    problem = nqp.Problem([h], noise, initial_mean=error)
    still = nqp.Problem([h], 0.0, initial_mean=error)
    calm = late.trajectory(still, 1).loss.average
    assert late.trajectory(problem, 1).loss.average - calm == pytest.approx(exact - calm, rel=1e-4)
