"""The published tables of the noisy quadratic model, to the digits printed there."""

import numpy as np
import pytest

from latephase import nqp

LARGE = nqp.Problem(nqp.power_law(10_000))
MEDIUM = nqp.Problem(nqp.power_law(1000))


def late(members, lr=0.5, **options):
    return nqp.LatePhase(members, lr / 2, lr / 2, 1 / members, **options)


def digits(text):
    """The value of a printed number and half a unit of its last digit."""
    return float(text), 0.5001 * 10.0 ** -len(text.split(".")[1])


def assert_prints(value, text):
    expected, half_unit = digits(text)
    assert abs(value - expected) <= half_unit, (value, text)


@pytest.mark.parametrize(
    ("lr", "row"),
    [
        (
            0.1,
            "0.246825 .123412 .184847 .049365 .147660 .024682 .135264 .012341 .129067 .049021 .193557 .171732 .120914",
        ),
        (
            0.5,
            "1.287028 .643514 .956464 .257406 .758125 .128703 .692013 .064351 .658956 .246825 .776631 .662927 .593690",
        ),
        (
            1.0,
            "2.793463 1.396731 2.040245 .558693 1.588315 .279346 1.437672 .139673 1.362350 .498265 1.382904 1.155061 "
            "1.231632",
        ),
        (
            1.9,
            "14.111367 7.055683 8.368524 2.822273 4.922818 1.411137 3.774250 .705568 3.199966 .964497 2.326746 "
            "1.895271 3.671751",
        ),
    ],
)
def test_steady_states(lr, row):
    values = [nqp.SGD(lr).steady_state(LARGE).average]
    for members in (2, 5, 10, 20):
        values.extend(late(members, lr).steady_state(LARGE))
    others = [nqp.SGD(lr / 5), nqp.SWA(lr, window=100), nqp.EMA(lr, decay=0.99), nqp.Lookahead(lr, k=5, alpha=0.5)]
    values.extend(method.steady_state(LARGE).average for method in others)
    for value, text in zip(values, row.split(), strict=True):
        assert_prints(value, text)


def test_summed_base_gradients():
    assert_prints(nqp.LatePhase(2, 0.25, 0.25, 1.0).steady_state(LARGE).average, ".999662")
    assert_prints(nqp.LatePhase(5, 0.25, 0.25, 1.0).steady_state(LARGE).average, "1.007833")
    with pytest.raises(ValueError, match=r"= 2\.75 >= 2; need effective_lr < 2"):
        nqp.LatePhase(10, 0.25, 0.25, 1.0).steady_state(LARGE)


@pytest.mark.parametrize(
    ("minibatches", "members", "grid", "sgd", "at_once", "best", "start", "dropped", "swa", "swa_start"),
    [
        (500, 5, 10, "1.20905", "1.06471", ".77102", 330, ".76120", ".66117", 200),
        (500, 10, 10, "1.20905", "1.30077", ".79517", 340, ".79108", ".66117", 200),
        (2000, 5, 10, "1.01758", ".53335", ".38143", 970, ".37097", ".24349", 400),
        (2000, 10, 10, "1.01758", ".69555", ".37477", 1000, ".36922", ".24349", 400),
        (10000, 5, 100, ".99923", ".22308", ".21079", 1900, ".20022", ".05141", 1000),
        (10000, 10, 100, ".99923", ".20687", ".14115", 2100, ".13535", ".05141", 1000),
    ],
)
def test_equal_minibatches(minibatches, members, grid, sgd, at_once, best, start, dropped, swa, swa_start):
    def loss(method):
        return method.expected_loss(MEDIUM, minibatches).average

    assert_prints(loss(nqp.SGD(0.5)), sgd)
    assert_prints(loss(late(members)), at_once)
    assert_prints(loss(late(members, start=start)), best)
    assert_prints(loss(nqp.SWA(0.5, window=minibatches - swa_start)), swa)
    # The table's starts lie on a grid; the exact search finds one as good and close by.
    exact, found = nqp.best_start(late(members), MEDIUM, minibatches)
    assert abs(exact - start) <= grid
    assert found.average <= loss(late(members, start=start))
    drops = [
        loss(nqp.SGD(0.5, schedule=nqp.LinearDecay(begin=at, end=at, final=1 / members)))
        for at in range(start - grid, start + 2 * grid, grid)
    ]
    # "Dropped at best T0": at the late phase's or at its own best point of the grid.
    assert any(abs(drop - digits(dropped)[0]) <= digits(dropped)[1] for drop in drops), (drops, dropped)
    assert min(drops) <= digits(dropped)[0] + digits(dropped)[1]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda lr: nqp.SGD(lr), ".6964"),
        (lambda lr: late(5, lr), ".7318"),
        (lambda lr: late(10, lr), ".7888"),
        (lambda lr: late(5, lr, start=700), ".5359"),
        (lambda lr: late(10, lr, start=700), ".5522"),
        (lambda lr: nqp.SGD(lr, schedule=nqp.LinearDecay(700, 700, 0.1)), ".5495"),
        (lambda lr: nqp.SWA(lr, window=1000), ".3735"),
        (lambda lr: nqp.EMA(lr, decay=0.997), ".3936"),
        (lambda lr: nqp.Lookahead(lr, k=5, alpha=0.2), ".6682"),
    ],
    ids=["SGD", "K=5 at once", "K=10 at once", "K=5 late", "K=10 late", "drop", "SWA", "EMA", "Lookahead"],
)
def test_tuned_constant_rates(build, text):
    # Refined in log lr to 1e-3, as in the table.
    def loss(log_lr):
        return build(float(np.exp(log_lr))).expected_loss(MEDIUM, 1000).average

    coarse = np.linspace(np.log(0.02), np.log(1.9), 24)
    best = coarse[np.argmin([loss(point) for point in coarse])]
    fine = np.linspace(best - 0.2, best + 0.2, 401)
    fine = fine[fine < np.log(1.99)]
    assert_prints(min(loss(point) for point in fine), text)


def test_equal_drift_costs_more_noise_than_a_smaller_rate():
    """Per direction the floors' ratio is (2 - mu h) / (2 - K mu h) at equal drift per minibatch."""
    members, per_minibatch = 5, 0.3
    for h in (1.0, 0.4, 0.01):
        problem = nqp.Problem([h])
        ratio = late(members, members * per_minibatch).steady_state(problem).average
        ratio /= nqp.SGD(per_minibatch).steady_state(problem).average
        assert ratio == pytest.approx((2 - per_minibatch * h) / (2 - members * per_minibatch * h), rel=1e-12)
        assert ratio >= 1
