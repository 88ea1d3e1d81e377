"""What must not depend on units, on the order of directions, or on how the effective rate is split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latephase import nqp

DECAY = nqp.LinearDecay(begin=10, end=25, final=0.3)


@st.composite
def problems(draw, flat=True):
    """Problems of one to five directions, some of them flat or without noise."""
    n = draw(st.integers(1, 5))
    curvature = st.sampled_from([0.0, 1e-3, 0.1, 0.5, 1.0]) if flat else st.sampled_from([1e-3, 0.1, 0.5, 1.0])

    def vector(values):
        return np.array(draw(st.lists(values, min_size=n, max_size=n)))

    return nqp.Problem(
        vector(curvature),
        vector(st.floats(0, 4)),
        batch_size=draw(st.sampled_from([0.5, 1, 8])),
        initial_mean=vector(st.floats(-2, 2)),
        initial_variance=vector(st.floats(0, 2)),
    )


RATES = st.floats(1e-3, 1.5)


def methods(lr, members=3):
    """One of every kind, all taking the counts 30, 60 and 90."""
    return [
        nqp.SGD(lr),
        nqp.SGD(lr, members, momentum=0.4, nesterov=True, schedule=DECAY),
        nqp.LatePhase(members, lr / 6, lr / 2, 1.0, start=30),
        nqp.LatePhase(members, lr / 6, lr / 2, 1.0, momentum=0.4, schedule=DECAY),
        nqp.Ensemble(lr, members),
        nqp.SWA(lr, window=7),
        nqp.SWA(lr),
        nqp.EMA(lr, decay=0.8),
        nqp.Lookahead(lr, k=5, alpha=0.6),
    ]


COUNTS = [30, 60, 90]


def with_units(problem, curvature=1.0, weight=1.0):
    """The same problem with curvatures times one factor and weights in other units."""
    return nqp.Problem(
        problem.curvature * curvature,
        problem.noise_variance * weight**2,
        problem.batch_size,
        problem.initial_mean * weight,
        problem.initial_variance * weight**2,
    )


@given(problem=problems(), lr=RATES, scale=st.sampled_from([1e-3, 0.5, 64.0]))
def test_scaling_curvature_up_and_rates_down_scales_the_loss(problem, lr, scale):
    for method, scaled in zip(methods(lr), methods(lr / scale), strict=True):
        loss = method.expected_loss(problem, COUNTS)
        other = scaled.expected_loss(with_units(problem, curvature=scale), COUNTS)
        for got, value in zip(other, loss, strict=True):
            np.testing.assert_allclose(got, scale * value, rtol=1e-9, atol=1e-300)


@given(problem=problems(), lr=RATES, unit=st.sampled_from([1e-2, 3.0]), noise=st.floats(0, 2))
def test_changing_the_unit_of_the_weights_scales_the_loss_by_its_square(problem, lr, unit, noise):
    late = nqp.LatePhase(3, lr / 6, lr / 2, 1.0, noise, start=30, momentum=0.3)
    rescaled = nqp.LatePhase(3, lr / 6, lr / 2, 1.0, noise * unit**2, start=30, momentum=0.3)
    pairs = [(method, method) for method in methods(lr)] + [(late, rescaled)]
    for method, other in pairs:
        loss = method.expected_loss(problem, COUNTS)
        for got, value in zip(other.expected_loss(with_units(problem, weight=unit), COUNTS), loss, strict=True):
            np.testing.assert_allclose(got, unit**2 * value, rtol=1e-9, atol=1e-300)


@given(problem=problems(), lr=RATES, data=st.data())
def test_the_order_of_directions_does_not_matter(problem, lr, data):
    order = data.draw(st.permutations(range(problem.directions)))
    shuffled = nqp.Problem(
        problem.curvature[order],
        problem.noise_variance[order],
        problem.batch_size,
        problem.initial_mean[order],
        problem.initial_variance[order],
    )
    for method in methods(lr):
        loss = method.expected_loss(problem, COUNTS)
        for got, value in zip(method.expected_loss(shuffled, COUNTS), loss, strict=True):
            np.testing.assert_allclose(got, value, rtol=1e-12, atol=1e-300)


@given(
    problem=problems(),
    effective=RATES,
    share=st.floats(0, 1),
    members=st.integers(2, 5),
    scale=st.sampled_from([1.0, 0.2]),
    momentum=st.sampled_from([0.0, 0.5]),
)
def test_the_split_of_the_effective_rate_changes_only_the_members(problem, effective, share, members, scale, momentum):
    def late(late_share):
        base_lr = (1 - late_share) * effective / (scale * members)
        # start=0: the split also decides what plain SGD with base_lr + late_lr would do before the start.
        return nqp.LatePhase(members, base_lr, late_share * effective, scale, momentum=momentum)

    counts = [0, members, 10 * members]
    ensemble, split, frozen = (late(part).expected_loss(problem, counts) for part in (1.0, share, 0.0))
    np.testing.assert_allclose(split.average, ensemble.average, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(frozen.average, ensemble.average, rtol=1e-9, atol=1e-300)
    assert np.all(split.members >= split.average)
    np.testing.assert_array_equal(frozen.members, frozen.average)
    assert late(share).effective_lr == pytest.approx(effective)


@given(problem=problems(), base_lr=st.floats(0, 1), late_lr=st.floats(0, 1), noise=st.floats(0, 1))
def test_one_member_is_sgd(problem, base_lr, late_lr, noise):
    for momentum in ({}, {"momentum": 0.6}, {"momentum": 0.6, "nesterov": True}):
        for schedule in (None, DECAY):
            late = nqp.LatePhase(1, base_lr, late_lr, 1.0, start=7, schedule=schedule, **momentum)
            sgd = nqp.SGD(base_lr + late_lr, schedule=schedule, **momentum)
            got, expected = (method.expected_loss(problem, [0, 5, 7, 8, 40]) for method in (late, sgd))
            np.testing.assert_allclose(got.average, expected.average, rtol=1e-9, atol=1e-300)
            np.testing.assert_array_equal(got.members, got.average)
    perturbed = nqp.LatePhase(1, base_lr, late_lr, 1.0, noise).expected_loss(problem, 0)
    shaken = nqp.Problem(
        problem.curvature,
        problem.noise_variance,
        problem.batch_size,
        problem.initial_mean,
        problem.initial_variance + noise,
    )
    assert perturbed == pytest.approx(tuple(nqp.SGD(0.1).expected_loss(shaken, 0)), rel=1e-12)


@given(problem=problems(), lr=RATES, members=st.integers(1, 5))
def test_average_is_k_batch_sgd_and_ensemble(problem, lr, members):
    counts = [members, 20 * members]
    late = nqp.LatePhase(members, lr / 3, lr / 3, 2 / members).expected_loss(problem, counts)
    for other in (nqp.SGD(lr, batch_multiplier=members), nqp.Ensemble(lr, members)):
        expected = other.expected_loss(problem, counts)
        np.testing.assert_allclose(late.average, expected.average, rtol=1e-9, atol=1e-300)
    # A member of the ensemble is a plain run of one K-th of the minibatches.
    single = nqp.SGD(lr).expected_loss(problem, [1, 20])
    np.testing.assert_allclose(expected.members, single.average, rtol=1e-9, atol=1e-300)


@given(problem=problems(), lr=RATES)
def test_averaging_rules_reduce_to_sgd(problem, lr):
    sgd = nqp.SGD(lr).expected_loss(problem, COUNTS)
    for method in (
        nqp.SWA(lr, window=1),
        nqp.EMA(lr, decay=0.0),
        nqp.Lookahead(lr, k=5, alpha=1.0),
        nqp.Lookahead(lr, k=6, alpha=1.0),
        nqp.Ensemble(lr, 1),
        nqp.SGD(lr, schedule=nqp.LinearDecay(begin=3, end=40, final=1.0)),
        nqp.SGD(lr, schedule=nqp.LinearDecay(begin=90, end=99, final=0.0)),
    ):
        np.testing.assert_allclose(method.expected_loss(problem, COUNTS).average, sgd.average, rtol=1e-9, atol=1e-300)


@given(problem=problems(), lr=RATES, start=st.integers(0, 20))
def test_a_drop_of_the_rate_at_the_start_is_late_phase_with_one_slow_member(problem, lr, start):
    drop = nqp.SGD(lr, schedule=nqp.LinearDecay(begin=start, end=start, final=0.2))
    slow = nqp.LatePhase(1, 0.1 * lr, 0.1 * lr, 1.0, start=start, sgd_lr=lr)
    got, expected = (method.expected_loss(problem, [0, 10, 20, 40]) for method in (drop, slow))
    np.testing.assert_allclose(got.average, expected.average, rtol=1e-9, atol=1e-300)


@given(problem=problems(), first=st.integers(0, 50))
def test_counts_may_be_asked_one_by_one_or_together(problem, first):
    for method in methods(0.7):
        together = method.expected_loss(problem, COUNTS)
        alone = [method.expected_loss(problem, count) for count in COUNTS]
        np.testing.assert_allclose(together.average, [loss.average for loss in alone], rtol=1e-10, atol=1e-300)
        np.testing.assert_allclose(together.members, [loss.members for loss in alone], rtol=1e-10, atol=1e-300)


@given(problem=problems(flat=False), lr=st.floats(0.05, 1.0), start=st.integers(0, 40))
def test_the_start_leaves_the_steady_state_alone(problem, lr, start):
    late = nqp.LatePhase(4, lr / 8, lr / 2, 1.0, 0.3, start=start)
    loss = late.expected_loss(problem, start + 4 * 10**7)
    assert loss == pytest.approx(tuple(late.steady_state(problem)), rel=1e-9, abs=1e-200)
