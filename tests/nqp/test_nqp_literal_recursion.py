"""The decomposition into averaged model and differences against Algorithm 1 written out weight by weight."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latephase import nqp


def literal_losses(method, h, s, mean0, variance0, counts):
    """Exact losses of one direction from the covariance of [theta, phi_1..phi_K] and all their buffers.

    Every optimizer step is a matrix on this state, written from the update rules alone.
    """
    K, mu = method.members, method.momentum
    size = 2 * (K + 1)
    factor = method.schedule.factor if method.schedule else lambda minibatch: 1.0

    def pull(transition, response, weight, gradient_row, gradient_noise, rate):
        """One torch.optim.SGD step of one weight: its buffer first, then the weight."""
        buffer = weight + K + 1
        new_row = mu * np.eye(size)[buffer] + gradient_row
        new_noise = gradient_noise.copy()
        transition[buffer], response[buffer] = new_row, new_noise
        moved_row, moved_noise = (
            (gradient_row + mu * new_row, gradient_noise + mu * new_noise) if method.nesterov else (new_row, new_noise)
        )
        transition[weight] = np.eye(size)[weight] - rate * moved_row
        response[weight] = -rate * moved_noise

    def apply(state, transition, response):
        mean, covariance = state
        return transition @ mean, transition @ covariance @ transition.T + response @ response.T * s

    # Before the start w is theta, with every phi at 0.
    mean, covariance = np.zeros(size), np.zeros((size, size))
    mean[0], covariance[0, 0] = mean0, variance0
    state = mean, covariance
    results, averaging = [], np.zeros(size)
    averaging[0], averaging[1 : K + 1] = 1.0, 1.0 / K
    minibatch = 0

    def losses():
        def loss(row):
            return 0.5 * h * ((row @ state[0]) ** 2 + row @ state[1] @ row)

        members = [np.eye(size)[0] + np.eye(size)[k] for k in range(1, K + 1)]
        return loss(averaging), np.mean([loss(row) for row in members])

    while minibatch < method.start:
        if minibatch in counts:
            results.append(losses())
        transition, response = np.eye(size), np.zeros((size, 1))
        pull(transition, response, 0, h * np.eye(size)[0], np.array([h]), factor(minibatch) * method.plain_lr)
        state = apply(state, transition, response)
        minibatch += 1
    born = np.eye(size)
    for buffer in range(K + 1, size):
        born[buffer] = np.eye(size)[K + 1] if method.optimizer_state == "copy" else 0.0
    mean, covariance = born @ state[0], born @ state[1] @ born.T
    covariance[np.arange(1, K + 1), np.arange(1, K + 1)] += method.perturbation_variance
    state = mean, covariance
    while True:
        if minibatch in counts:
            results.append(losses())
        if minibatch >= counts[-1]:
            return np.array(results)
        transition, response = np.eye(size), np.zeros((size, K))
        rows = h * (np.eye(size)[0] + np.eye(size)[1 : K + 1])
        noises = h * np.eye(K)
        rate = factor(minibatch + K - 1)
        for k in range(K):
            pull(transition, response, 1 + k, rows[k], noises[k], rate * method.late_lr)
        scale = method.base_gradient_scale
        pull(transition, response, 0, scale * rows.sum(axis=0), scale * noises.sum(axis=0), rate * method.base_lr)
        state = apply(state, transition, response)
        minibatch += K


def check(method, rounds=(0, 1, 2, 7)):
    h, s, mean0, variance0 = np.array([1.3, 0.2, 0.01]), np.array([0.7, 2.0, 9.0]), -0.8, 0.3
    counts = sorted({0, method.start // 2, *(method.start + method.members * j for j in rounds)})
    problem = nqp.Problem(h, 4 * s, batch_size=4, initial_mean=mean0, initial_variance=variance0)
    loss = method.expected_loss(problem, counts)
    literal = sum(literal_losses(method, h[i], s[i], mean0, variance0, counts) for i in range(3))
    np.testing.assert_allclose(loss.average, literal[:, 0], rtol=1e-11)
    np.testing.assert_allclose(loss.members, literal[:, 1], rtol=1e-11)


SCHEDULE = nqp.LinearDecay(begin=4, end=17, final=0.1)


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9}, {"momentum": 0.6, "nesterov": True}], ids=str)
@pytest.mark.parametrize("schedule", [None, SCHEDULE], ids=["constant", "decay"])
@pytest.mark.parametrize("state", ["copy", "reset"])
@pytest.mark.parametrize("members", [1, 2, 5])
def test_losses_are_those_of_the_literal_algorithm(members, state, schedule, momentum):
    check(
        nqp.LatePhase(
            members,
            base_lr=0.11,
            late_lr=0.05,
            base_gradient_scale=0.7,
            perturbation_variance=0.2,
            start=9,
            sgd_lr=0.13,
            schedule=schedule,
            optimizer_state=state,
            **momentum,
        )
    )


@given(
    members=st.integers(1, 6),
    base_lr=st.floats(0, 1),
    late_lr=st.floats(0, 1),
    scale=st.floats(0.05, 1),
    noise=st.floats(0, 2),
    start=st.integers(0, 12),
    momentum=st.sampled_from([0.0, 0.3, 0.95]),
    nesterov=st.booleans(),
)
def test_losses_are_those_of_the_literal_algorithm_for_any_settings(
    members, base_lr, late_lr, scale, noise, start, momentum, nesterov
):
    check(
        nqp.LatePhase(
            members, base_lr, late_lr, scale, noise, start, momentum=momentum, nesterov=nesterov and momentum > 0
        ),
        rounds=(0, 1, 4),
    )


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9}, {"momentum": 0.6, "nesterov": True}], ids=str)
@pytest.mark.parametrize("schedule", [None, SCHEDULE], ids=["constant", "decay"])
def test_sgd_is_the_literal_algorithm_before_the_start(schedule, momentum):
    method = nqp.LatePhase(1, 0.0, 0.1, 1.0, start=40, sgd_lr=0.2, schedule=schedule, **momentum)
    problem = nqp.Problem([0.8], [1.1], initial_mean=2.0, initial_variance=0.1)
    counts = [0, 1, 3, 11, 12, 39]
    loss = nqp.SGD(0.2, schedule=schedule, **momentum).expected_loss(problem, counts)
    literal = literal_losses(method, 0.8, 1.1, 2.0, 0.1, [*counts, 40])[:-1]
    np.testing.assert_allclose(loss.average, literal[:, 0], rtol=1e-11)


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9}, {"momentum": 0.6, "nesterov": True}], ids=str)
def test_losses_reach_the_steady_state(momentum):
    problem = nqp.Problem([1.0, 0.3, 0.0], [0.5, 2.0, 1.0], batch_size=3)
    decay = nqp.LinearDecay(begin=10, end=50, final=0.4)
    for method in [
        nqp.SGD(0.3, **momentum),
        nqp.SGD(0.3, 4, schedule=decay, **momentum),
        nqp.LatePhase(4, 0.1, 0.2, 0.5, 0.3, start=8, **momentum),
        nqp.LatePhase(4, 0.1, 0.0, 0.5, 0.3, start=8, **momentum),
        nqp.LatePhase(4, 0.0, 0.2, 1.0, 0.3, schedule=decay, **momentum),
    ]:
        late = method.expected_loss(problem, 8 + 4 * 10**6 if getattr(method, "start", 0) else 4 * 10**6)
        assert late == pytest.approx(tuple(method.steady_state(problem)), rel=1e-10)
