"""When to start: the exact search against brute force, the closed form against the search."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latephase import nqp
from latephase.nqp import start as start_module

ONE = nqp.Problem([1.0], [1.0], initial_mean=10.0)


def late(members, lr=0.2, **options):
    return nqp.LatePhase(members, lr / 2, lr / 2, 1 / members, **options)


@pytest.mark.parametrize(
    ("members", "noise", "expected"),
    [(2, 0.0, 16.792845), (5, 0.0, 18.845987), (10, 0.0, 20.399129), (5, 0.05, 18.607106), (10, 0.2, 19.990599)],
)
def test_known_optima_of_one_direction(members, noise, expected):
    got = nqp.optimal_start(late(members, perturbation_variance=noise), ONE)
    assert got == pytest.approx([expected], abs=5e-7)


def test_known_losses_of_one_direction():
    assert late(10).expected_loss(ONE, 60).average == pytest.approx(3.441148, abs=5e-7)
    # The optimum, 20.4, is no whole number; SGD and the late phase are both powers of 0.8, so continue them.
    best = nqp.optimal_start(late(10), ONE)[0]
    floor, bias = 1 / 9, 100 - 1 / 9
    late_floor = floor / 10
    at_start = floor + bias * 0.64**best
    loss = 0.5 * (late_floor + (at_start - late_floor) * 0.64 ** ((60 - best) / 10))
    assert loss == pytest.approx(0.015044, abs=5e-7)
    assert nqp.SGD(0.2).expected_loss(ONE, 60).average == pytest.approx(0.055556, abs=5e-7)


def test_start_when_the_loss_is_within_one_kth_of_its_floor():
    problem = nqp.Problem([0.02], [3.0], initial_mean=50.0)
    start = nqp.optimal_start(late(5, lr=0.2), problem)[0]
    floor = nqp.SGD(0.2).steady_state(problem).average
    before, after = nqp.SGD(0.2).expected_loss(problem, [int(start), int(start) + 1]).average
    assert before > (1 + 1 / 5) * floor > after


@given(
    members=st.integers(2, 6),
    # Far from the floor at the end: on it, all starts give the same loss to the last digit.
    lr=st.floats(0.01, 0.2),
    noise=st.floats(0, 1),
    mean=st.floats(-5, 5),
    budget=st.integers(12, 48),
)
def test_closed_form_lies_beside_the_best_whole_start(members, lr, noise, mean, budget):
    problem = nqp.Problem([1.0], [2.0], initial_mean=mean, initial_variance=0.1)
    method = late(members, lr, perturbation_variance=noise)
    exact = nqp.optimal_start(method, problem, budget)[0]
    found, loss = nqp.best_start(method, problem, budget)
    assert 0 <= exact <= budget
    # Possible starts lie one round apart and the loss has one valley: the best of them is within a round.
    assert abs(found - exact) <= members
    assert loss == method_at(method, found).expected_loss(problem, budget)


def method_at(method, start):
    return replace(method, start=start)


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.8}, {"momentum": 0.8, "nesterov": True}], ids=str)
@pytest.mark.parametrize("schedule", [None, nqp.LinearDecay(begin=20, end=70, final=0.05)], ids=["constant", "decay"])
@pytest.mark.parametrize("state", ["copy", "reset"])
def test_search_is_brute_force(momentum, schedule, state):
    problem = nqp.Problem(nqp.power_law(7), initial_mean=1.5, initial_variance=0.2)
    method = nqp.LatePhase(
        3, 0.1, 0.05, 1.0, 0.1, sgd_lr=0.3, schedule=schedule, optimizer_state=state, start=99, **momentum
    )
    losses = {start: method_at(method, start).expected_loss(problem, 101) for start in range(2, 102, 3)}
    best = min(losses, key=lambda start: losses[start].average)
    found, loss = nqp.best_start(method, problem, 101)
    assert 2 < best < 101
    assert (found, loss) == (best, losses[best])


def test_search_in_blocks_of_directions_is_the_search_at_once(monkeypatch):
    problem = nqp.Problem(nqp.power_law(50))
    whole = nqp.best_start(late(5, lr=0.5), problem, 500)
    monkeypatch.setattr(start_module, "_BLOCK_NUMBERS", 6 * 101 * 7)
    assert nqp.best_start(late(5, lr=0.5), problem, 500) == whole


def test_special_directions():
    problem = nqp.Problem([1.0, 1.0, 0.0, 1.0, 0.5], [1.0, 0.0, 1.0, 9.0, 1.0], initial_mean=[3.0, 3.0, 3.0, 0.1, 3.0])
    start = nqp.optimal_start(late(5, lr=0.5), problem)
    assert start[0] > 0
    assert start[1] == np.inf  # without noise plain SGD is best to the end
    assert np.isnan(start[2])  # nothing depends on the start
    assert start[3] == 0.0  # below the noise floor from the beginning
    assert start[4] > start[0]  # low curvature needs longer
    clipped = nqp.optimal_start(late(5, lr=0.5), problem, 10)
    np.testing.assert_array_equal(clipped, np.minimum(start, 10))
    np.testing.assert_array_equal(nqp.optimal_start(late(5, lr=1.0), ONE), [0.0])  # one step forgets everything


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (nqp.SGD(0.2), "has no start; need a LatePhase"),
        (late(1), "members = 1 has no best start; need members >= 2"),
        (late(5, momentum=0.9), "momentum = 0.9"),
        (late(5, schedule=nqp.LinearDecay(1, 2)), "LinearDecay"),
        (late(5, sgd_lr=0.3), "sgd_lr = 0.3 differs from effective_lr = 0.2"),
        (late(5, lr=2.0), "effective_lr = sgd_lr = 2 has no noise floor; need 0 < effective_lr < 2"),
        (late(5, lr=0.0), "effective_lr = sgd_lr = 0 has no noise floor"),
    ],
    ids=str,
)
def test_closed_form_refuses_what_it_does_not_cover(method, message):
    with pytest.raises(ValueError, match=message):
        nqp.optimal_start(method, ONE)


def test_search_refuses_what_has_no_start():
    with pytest.raises(ValueError, match="has no start; need a LatePhase"):
        nqp.best_start(nqp.SGD(0.2), ONE, 10)
    with pytest.raises(ValueError, match="minibatches = -1 is too small; need an integer >= 0"):
        nqp.best_start(late(2), ONE, -1)
