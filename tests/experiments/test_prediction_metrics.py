"""Accuracy, NLL, ECE and Brier against independent implementations, and at their edges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torchmetrics.classification import MulticlassCalibrationError

import latephase
from latephase.evaluation import Metrics, evaluate_members, evaluate_model


def predictions(n: int = 500, classes: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits.log_softmax(dim=1), torch.randint(classes, (n,), generator=generator)


def scores(log_p: torch.Tensor, labels: torch.Tensor, parts: int = 1) -> dict[str, float]:
    metrics = Metrics()
    for x, y in zip(log_p.chunk(parts), labels.chunk(parts), strict=True):
        metrics.update(x, y)
    return metrics.compute()


def test_the_scores_equal_scikit_learns_and_torchmetrics() -> None:
    log_p, labels = predictions()
    ours, p, y = scores(log_p, labels), log_p.exp().numpy(), labels.numpy()
    assert ours["accuracy"] == pytest.approx(accuracy_score(y, p.argmax(axis=1)), abs=1e-15)
    assert ours["nll"] == pytest.approx(log_loss(y, p, labels=list(range(7))), rel=1e-12)
    assert ours["brier"] == pytest.approx(float(((p - np.eye(7)[y]) ** 2).sum(axis=1).mean()), rel=1e-12)
    theirs = MulticlassCalibrationError(num_classes=7, n_bins=15, norm="l1")(log_p.exp(), labels)
    assert ours["ece"] == pytest.approx(float(theirs), abs=1e-6)


def test_the_calibration_error_is_that_of_a_loop_over_the_bins() -> None:
    log_p, labels = predictions(seed=3)
    confidence, predicted = log_p.exp().max(dim=1)
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            accuracy = (predicted == labels)[inside].double().mean()
            expected += float(inside.double().mean() * (accuracy - confidence[inside].mean()).abs())
    assert scores(log_p, labels)["ece"] == pytest.approx(expected, rel=1e-12)


def test_a_confidence_of_exactly_one_belongs_to_the_last_bin() -> None:
    # Confidences 1, 1 and 0.95, of which the first is right: all three lie in (14/15, 1].
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.95, 0.05]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1])
    metrics = Metrics()
    metrics.update(p.log(), labels)
    assert metrics.compute()["ece"] == pytest.approx(abs(1 / 3 - 2.95 / 3), rel=1e-12)
    assert metrics.reliability()["count"] == [0.0] * 14 + [3.0]
    assert metrics.compute()["nll"] == math.inf


def test_perfect_predictions_score_perfectly() -> None:
    labels = torch.tensor([0, 2, 1])
    log_p = torch.eye(3, dtype=torch.float64)[labels].log()
    assert scores(log_p, labels) == {"accuracy": 1.0, "nll": 0.0, "ece": 0.0, "brier": 0.0}


@given(st.integers(1, 40), st.integers(2, 12), st.integers(0, 1000), st.integers(1, 7))
def test_minibatches_add_up_to_the_whole(n: int, classes: int, seed: int, parts: int) -> None:
    log_p, labels = predictions(n, classes, seed)
    whole, streamed = scores(log_p, labels), scores(log_p, labels, parts=len(log_p.chunk(parts)))
    assert streamed == pytest.approx(whole, rel=1e-10, abs=1e-12)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="no predictions were added"):
        Metrics().compute()


@pytest.fixture
def late() -> latephase.LatePhase:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    late = latephase.LatePhase(model, members=3, weights=["norm", "head"], noise=0.5)
    late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    late.start()
    return late


def test_members_and_ensemble_are_scored_as_a_loop_would(late: latephase.LatePhase) -> None:
    x, y = torch.randn(60, 5), torch.randint(4, (60,))
    batches = [(x[:25], y[:25]), (x[25:], y[25:])]
    ensemble, members, disagreement = evaluate_members(late, batches)
    outputs = []
    for k in range(3):
        with late.member(k), torch.no_grad():
            late.model.eval()
            outputs.append(late.model(x).double().softmax(dim=1))
            late.model.train()
    for ours, p in zip(members, outputs, strict=True):
        assert ours.compute() == pytest.approx(scores(p.log(), y), rel=1e-6)
    assert ensemble.compute() == pytest.approx(scores(torch.stack(outputs).mean(dim=0).log(), y), rel=1e-6)
    for i in range(3):
        for j in range(3):
            differ = (outputs[i].argmax(dim=1) != outputs[j].argmax(dim=1)).double().mean()
            assert disagreement[i][j] == pytest.approx(float(differ))
    assert disagreement[0][1] > 0


def test_the_model_under_a_late_phase_is_scored_as_the_average(late: latephase.LatePhase) -> None:
    x, y = torch.randn(60, 5), torch.randint(4, (60,))
    ours = evaluate_model(late.model, [(x, y)]).compute()
    assert late.model.training
    plain = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()
    plain.load_state_dict(late.averaged_state_dict())
    with torch.no_grad():
        assert ours == pytest.approx(scores(plain(x).double().log_softmax(dim=1), y), rel=1e-12)
