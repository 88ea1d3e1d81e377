"""The exact losses against a simulation of the literal algorithms: |z| < 4 with 4,000 replicas."""

import nqp_reference
import numpy as np
import pytest
import torch

from latephase import nqp
from latephase.nqp.simulate import _Optimizer

REPLICAS = 4000
DECAY = nqp.LinearDecay(begin=8, end=30, final=0.2)
CURVED = nqp.Problem([1.0, 0.25, 0.04], [0.5, 1.0, 4.0], batch_size=2, initial_mean=-0.6, initial_variance=0.2)


def assert_agree(method, problem, counts, replicas=REPLICAS, seed=1):
    """Every count's mean loss lies within four standard errors of the exact one."""
    exact = method.expected_loss(problem, counts)
    drawn = nqp.simulate(method, problem, counts, replicas, seed)
    for name in ("average", "members"):
        sample, value = getattr(drawn, name), getattr(exact, name)
        error = sample.std(axis=0, ddof=1) / np.sqrt(replicas)
        # A count without any randomness yet has no spread: there the values must be equal.
        same = np.isclose(sample.mean(axis=0), value, rtol=1e-12)
        z = np.abs(sample.mean(axis=0) - value) / np.where(error > 0, error, 1.0)
        assert np.all(same | ((z < 4) & (error > 0))), (name, counts, z)


@pytest.mark.parametrize("case", nqp_reference.CASES, ids=lambda case: case.id)
def test_first_counts_of_every_case(case):
    counts = [count for count in case.points if count <= 110]
    assert_agree(case.method, case.problem, counts)


@pytest.mark.slow
@pytest.mark.parametrize("case", nqp_reference.CASES, ids=lambda case: case.id)
def test_all_counts_of_every_case(case):
    assert_agree(case.method, case.problem, list(case.points), seed=2)


@pytest.mark.slow
def test_every_case_of_the_shared_file():
    for case in nqp_reference.shared_file()["cases"]:
        counts = [point["minibatches"] for point in case["points"]]
        method, problem = nqp_reference.shared_method(case["input"]), nqp_reference.shared_problem(case["input"])
        assert_agree(method, problem, counts, seed=3)


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        (nqp.SGD(0.3, momentum=0.8), [0, 1, 2, 40]),
        (nqp.SGD(0.3, momentum=0.8, nesterov=True), [1, 2, 40]),
        (nqp.SGD(0.5, schedule=DECAY), [7, 9, 20, 40]),
        (nqp.SGD(0.2, 3, momentum=0.6, nesterov=True, schedule=DECAY), [3, 21, 60]),
        (nqp.LatePhase(4, 0.1, 0.2, 1.0, 0.1, start=6, sgd_lr=0.5), [0, 3, 6, 10, 46]),
        (nqp.LatePhase(4, 0.1, 0.2, 0.5, 0.1, start=6, momentum=0.7), [6, 10, 14, 46]),
        (nqp.LatePhase(3, 0.1, 0.2, 0.5, 0.1, 6, momentum=0.7, optimizer_state="reset"), [9, 12, 45]),
        (nqp.LatePhase(3, 0.1, 0.1, 1.0, 0.1, 6, momentum=0.5, nesterov=True, schedule=DECAY), [9, 12, 21, 45]),
        (nqp.Ensemble(0.6, 3), [0, 3, 30]),
        (nqp.SWA(0.6), [1, 2, 30]),
        (nqp.SWA(0.6, window=5), [4, 5, 30]),
        (nqp.EMA(0.6, decay=0.9), [0, 1, 30]),
        (nqp.Lookahead(0.9, k=3, alpha=0.4), [0, 3, 30]),
        (nqp.Lookahead(2.2, k=5, alpha=0.5), [5, 30]),
    ],
    ids=str,
)
def test_what_the_cases_leave_out(method, counts):
    assert_agree(method, CURVED, counts)


def test_single_count_and_several_are_the_same_run():
    late = nqp.LatePhase(3, 0.1, 0.2, 1.0, 0.1, start=5)
    one = nqp.simulate(late, CURVED, 11, replicas=6, seed=4)
    several = nqp.simulate(late, CURVED, [2, 5, 11], replicas=6, seed=4)
    assert one.average.shape == (6,)
    assert several.members.shape == (6, 3)
    np.testing.assert_array_equal(one.average, several.average[:, -1])
    np.testing.assert_array_equal(one.members, several.members[:, -1])
    np.testing.assert_array_equal(several.average[:, 0], several.members[:, 0])
    assert not np.array_equal(one.average, nqp.simulate(late, CURVED, 11, replicas=6, seed=5).average)


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_the_simulated_optimizer_is_torch_sgd_under_a_scheduler(momentum):
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    theirs = torch.optim.SGD([parameter], lr=0.3, **momentum)
    scheduler = torch.optim.lr_scheduler.LambdaLR(theirs, DECAY.factor)
    ours, weight = _Optimizer(0.3, **momentum), parameter.detach().numpy().copy()
    for minibatch in range(40):
        gradient = np.cos(minibatch + np.arange(2.0))
        ours.step(weight, gradient, DECAY.factor(minibatch))
        parameter.grad = torch.from_numpy(gradient)
        theirs.step()
        scheduler.step()
        np.testing.assert_allclose(weight, parameter.detach().numpy(), rtol=1e-13)


def test_diverging_runs_end_in_infinite_losses_without_a_warning():
    loss = nqp.simulate(nqp.SGD(5.0), nqp.Problem([1.0]), 2000, replicas=3, seed=0)
    assert not np.isfinite(loss.average).any()


def test_foreign_methods_are_refused():
    with pytest.raises(ValueError, match="method = 'sgd' cannot be simulated"):
        nqp.simulate("sgd", CURVED, 1, replicas=1, seed=0)
    with pytest.raises(ValueError, match="replicas = 0 is too small; need an integer >= 1"):
        nqp.simulate(nqp.SGD(0.1), CURVED, 1, replicas=0, seed=0)
