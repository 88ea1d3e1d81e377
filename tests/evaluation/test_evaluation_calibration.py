"""Temperature, reliability bins and risk-coverage curves, against SciPy, scikit-learn and brute force."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from latephase import LatePhaseValueError
from latephase.evaluation import Metrics, RiskCoverage, fit_temperature, reliability_bins, risk_coverage


def predictions(n=400, classes=5, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = scale * (torch.randn(n, classes, generator=generator) + 1.2 * F.one_hot(labels, classes))
    return logits, labels


@pytest.mark.parametrize("scale", [1e-3, 0.3, 3.0, 1e4])
def test_temperature_is_the_minimum_that_scipy_finds(scale):
    logits, labels = predictions(scale=scale)
    fitted = fit_temperature(zip(logits.split(64), labels.split(64), strict=True))

    def nll(log_t):
        return float(F.cross_entropy(logits.double() / math.exp(log_t), labels))

    judge = minimize_scalar(nll, bracket=(math.log(scale), math.log(scale) + 1), options={"xtol": 1e-10})
    assert fitted.temperature == pytest.approx(math.exp(judge.x), rel=1e-6)
    assert fitted.nll_after == pytest.approx(judge.fun, rel=1e-12)
    assert fitted.nll_before == pytest.approx(nll(0.0), rel=1e-12)
    assert fitted.samples == 400


def test_temperature_is_where_the_gradient_vanishes():
    logits, labels = predictions(seed=3)
    fitted = fit_temperature([(logits, labels)])
    beta = torch.tensor(1 / fitted.temperature, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(logits.double() * beta, labels).backward()
    assert abs(float(beta.grad)) < 1e-12


def test_temperature_undoes_a_scaling_of_the_logits():
    logits, labels = predictions()
    one = fit_temperature([(logits.double(), labels)])
    seven = fit_temperature([(7 * logits.double(), labels)])
    assert seven.temperature == pytest.approx(7 * one.temperature, rel=1e-9)
    torch.testing.assert_close(seven(7 * logits.double()), one(logits.double()))
    again = fit_temperature([(one(logits), labels)])
    assert again.temperature == pytest.approx(1.0, rel=1e-9)


def test_a_fitted_temperature_gives_normalised_log_probabilities_and_json():
    logits, labels = predictions()
    fitted = fit_temperature([(logits, labels)])
    torch.testing.assert_close(fitted(logits).exp().sum(dim=1), torch.ones(400, dtype=torch.float64))
    assert json.loads(json.dumps(fitted.to_dict()))["temperature"] == fitted.temperature


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "no predictions"),
        (torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1]), "all 2 samples are classified correctly"),
        (torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([1, 0]), "no better than chance"),
        (torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), "no better than chance"),
        (torch.tensor([[float("inf"), 0.0]]), torch.tensor([0]), "1 of 2 values are infinite"),
        (torch.tensor([[1.0, 0.0]]), torch.tensor([2]), "labels from 2 to 2, but the model has 2 classes"),
        (torch.tensor([[1.0, 0.0]]), torch.tensor([0.5]), "integer class indices"),
        (torch.tensor([1.0, 0.0]), torch.tensor([0]), r"\(N, classes\) are needed"),
        (torch.tensor([[1.0, 0.0]]), torch.tensor([0, 1]), "labels of shape"),
    ],
)
def test_temperature_refuses_what_has_no_answer(logits, labels, says):
    with pytest.raises(LatePhaseValueError, match=says):
        fit_temperature([(logits, labels)])


def test_reliability_bins_give_the_calibration_error_and_wilson_intervals():
    logits, labels = predictions(n=1000)
    metrics = Metrics(bins=10)
    metrics.update(logits.double().log_softmax(1), labels)
    bins = reliability_bins(metrics)
    assert [(b.low, b.high) for b in bins] == [(i / 10, (i + 1) / 10) for i in range(10)]
    assert sum(b.count for b in bins) == 1000
    confidence, predicted = logits.double().softmax(1).max(1)
    for b in bins:
        inside = (confidence > b.low) & (confidence <= b.high)
        assert b.count == int(inside.sum())
        if b.count:
            assert b.confidence == pytest.approx(float(confidence[inside].mean()))
            accuracy = float((predicted == labels)[inside].double().mean())
            assert b.accuracy == pytest.approx(accuracy)
            # Wilson's interval holds the p with (accuracy - p)^2 = z^2 p (1 - p) / n.
            for p in (b.accuracy_low, b.accuracy_high):
                assert (accuracy - p) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / b.count, abs=1e-12)
    ece = sum(b.count * abs(b.accuracy - b.confidence) for b in bins if b.count) / 1000
    assert ece == pytest.approx(metrics.compute()["ece"])
    assert bins[0].to_dict() | {"low": 0.0} == bins[0].to_dict()
    with pytest.raises(LatePhaseValueError, match="no predictions"):
        reliability_bins(Metrics())


def test_empty_bins_have_no_accuracy():
    metrics = Metrics(bins=4)
    metrics.update(torch.tensor([[0.9, 0.1]]).log(), torch.tensor([0]))
    assert [b.accuracy for b in reliability_bins(metrics)] == [None, None, None, 1.0]


def brute_force(confidence, correct):
    """The mean over every order that confidence allows."""
    n = len(confidence)
    curves = []
    for order in itertools.permutations(range(n)):
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order)):
            wrong = np.cumsum([not correct[i] for i in order])
            curves.append(wrong / np.arange(1, n + 1))
    return np.mean(curves, axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_risk_is_the_mean_over_all_orders_of_equal_confidences(seed):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, 3, size=7) / 4
    correct = rng.random(7) < 0.6
    curve = risk_coverage(torch.from_numpy(confidence), torch.from_numpy(correct))
    judge = brute_force(confidence, correct)
    np.testing.assert_allclose(curve.risk, judge, atol=1e-12)
    assert curve.aurc == pytest.approx(judge.mean())
    assert curve.coverage == pytest.approx([i / 7 for i in range(1, 8)])
    best = brute_force(correct.astype(float), correct)
    assert curve.aurc_best == pytest.approx(best.mean())
    assert curve.aurc_excess == pytest.approx(judge.mean() - best.mean())
    assert curve.error == pytest.approx(1 - correct.mean())


def test_risk_does_not_depend_on_the_order_of_the_data_and_streams():
    logits, labels = predictions(n=500)
    log_p = (logits / 4).round().double().log_softmax(1)  # rounded, so that there are ties
    confidence, predicted = log_p.max(1)
    curve = risk_coverage(confidence, predicted == labels)
    shuffle = torch.randperm(500)
    shuffled = risk_coverage(confidence[shuffle], (predicted == labels)[shuffle])
    assert shuffled.aurc == pytest.approx(curve.aurc, abs=1e-14)
    assert shuffled.risk == pytest.approx(curve.risk, abs=1e-14)
    stream = RiskCoverage()
    for z, y in zip(log_p.split(33), labels.split(33), strict=True):
        stream.update(z, y)
    assert stream.compute() == curve
    assert len(curve.risk) == 101
    assert curve.coverage[-1] == 1.0
    assert curve.risk[-1] == pytest.approx(curve.error)


def test_risk_keeps_apart_what_probabilities_round_to_one():
    """At float64's end of scale the probability is 1 for both; its logarithm still tells which is surer."""
    stream = RiskCoverage()
    stream.update(torch.tensor([[0.0, -45.0], [0.0, -40.0]], dtype=torch.float64), torch.tensor([0, 1]))
    tied = stream.compute().risk
    stream = RiskCoverage()
    logits = torch.tensor([[0.0, -30.0], [0.0, -28.0]], dtype=torch.float64)
    stream.update(logits.log_softmax(1), torch.tensor([0, 1]))
    assert tied == (0.5, 0.5)
    assert stream.compute().risk == (0.0, 0.5)


def test_risk_refuses_bad_input():
    with pytest.raises(LatePhaseValueError, match="no samples"):
        risk_coverage(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    with pytest.raises(LatePhaseValueError, match="no predictions"):
        RiskCoverage().compute()
    with pytest.raises(LatePhaseValueError, match="shape"):
        risk_coverage(torch.zeros(3), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(LatePhaseValueError, match="not a number"):
        risk_coverage(torch.tensor([0.1, float("nan")]), torch.ones(2, dtype=torch.bool))
    with pytest.raises(LatePhaseValueError, match="points: 1"):
        risk_coverage(torch.ones(2), torch.ones(2, dtype=torch.bool), points=1)
    with pytest.raises(LatePhaseValueError, match="labels from"):
        RiskCoverage().update(torch.zeros(1, 2), torch.tensor([2]))
