"""Scores and detection, against NumPy, scikit-learn's other routines and brute force."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import precision_recall_curve, roc_curve

from latephase import LatePhaseValueError
from latephase.evaluation import NoiseImages, collect_uncertainties, detect, detect_all, uncertainties
from latephase.evaluation.ood import _delong


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_scores_of_one_model():
    z = torch.randn(20, 5)
    p = softmax(z.double().numpy())
    scores = uncertainties(z)
    assert list(scores) == ["entropy", "max_probability", "energy"]
    np.testing.assert_allclose(scores["entropy"], scipy_entropy(p, axis=1))
    np.testing.assert_allclose(scores["max_probability"], -p.max(1))
    np.testing.assert_allclose(scores["energy"], -np.log(np.exp(z.double().numpy()).sum(1)))


def test_scores_of_members():
    z = torch.randn(4, 20, 5)
    p = softmax(z.double().numpy())
    scores = uncertainties(z)
    np.testing.assert_allclose(scores["entropy"], scipy_entropy(p.mean(0), axis=1))
    np.testing.assert_allclose(scores["max_probability"], -p.mean(0).max(1))
    np.testing.assert_allclose(scores["energy"], -np.log(np.exp(z.double().numpy()).sum(2)).mean(0))
    mutual = scipy_entropy(p.mean(0), axis=1) - scipy_entropy(p, axis=2).mean(0)
    np.testing.assert_allclose(scores["mutual_information"], mutual)
    assert (mutual > 0.01).any()


def test_equal_members_have_no_mutual_information_and_the_scores_of_one():
    z = torch.randn(20, 5)
    one, many = uncertainties(z), uncertainties(torch.stack([z] * 3))
    for name in one:
        torch.testing.assert_close(many[name], one[name])
    assert float(many["mutual_information"].max()) < 1e-14
    assert float(many["mutual_information"].min()) >= 0


def test_scores_are_finite_for_the_surest_model():
    scores = uncertainties(torch.tensor([[1e4, 0.0, -1e4]]))
    assert {name: float(s) for name, s in scores.items()} == {"entropy": 0, "max_probability": -1, "energy": -1e4}


def brute_force(a, b):
    """AUROC by all pairs; average precision and false positives by all thresholds."""
    wins = [(x > y) + 0.5 * (x == y) for x in b for y in a]
    thresholds = sorted(set(a) | set(b), reverse=True)
    ap = before = 0.0
    for t in thresholds:
        found, all_found = sum(x >= t for x in b), sum(x >= t for x in [*a, *b])
        ap += (found / len(b) - before) * found / all_found
        before = found / len(b)
    passing = [t for t in sorted(set(a)) if sum(x <= t for x in a) >= 0.95 * len(a) - 1e-9]
    return np.mean(wins), ap, np.mean(np.array(b) <= passing[0])


@pytest.mark.parametrize(("n", "m", "levels"), [(30, 20, 5), (20, 40, 1000), (100, 7, 12), (1, 1, 3), (40, 3, 1)])
def test_detection_with_ties_against_brute_force(n, m, levels):
    rng = np.random.default_rng(n + m)
    a = rng.integers(0, levels, n) / levels
    b = (rng.integers(0, levels, m) + levels // 4) / levels
    found = detect(torch.from_numpy(a), torch.from_numpy(b))
    auroc, aupr, fpr = brute_force(a.tolist(), b.tolist())
    assert found.auroc == pytest.approx(auroc)
    assert found.aupr_out == pytest.approx(aupr)
    assert found.aupr_in == pytest.approx(brute_force((-b).tolist(), (-a).tolist())[1])
    assert found.fpr95 == pytest.approx(fpr)
    assert (found.inside, found.outside) == (n, m)


def test_detection_against_scikit_learns_curves():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=400), rng.normal(loc=1.0, size=300)
    found = detect(torch.from_numpy(a), torch.from_numpy(b))
    out = np.r_[np.zeros(400), np.ones(300)]
    fpr, tpr, _ = roc_curve(1 - out, -np.r_[a, b], drop_intermediate=False)  # in distribution is positive
    assert found.fpr95 == pytest.approx(fpr[np.argmax(tpr >= 0.95)])
    precision, recall, _ = precision_recall_curve(out, np.r_[a, b])
    assert found.aupr_out == pytest.approx(-np.sum(np.diff(recall) * precision[:-1]))
    assert found.auroc == pytest.approx(np.trapezoid(tpr, fpr))


def test_standard_error_of_auroc_is_that_of_its_placements_and_the_spread_over_data_sets():
    rng = np.random.default_rng(0)
    draws = [(rng.normal(size=80), rng.normal(loc=0.8, size=60)) for _ in range(300)]
    wins = [(b[:, None] > a).mean() for a, b in draws]
    claimed = [_delong(a, b) for a, b in draws]
    assert np.mean(claimed) == pytest.approx(np.std(wins), rel=0.1)
    a, b = (np.round(values, 1) for values in draws[0])  # with ties
    above = (b[:, None] > a) + 0.5 * (b[:, None] == a)
    variance = above.mean(0).var(ddof=1) / len(a) + above.mean(1).var(ddof=1) / len(b)
    found = detect(torch.from_numpy(a), torch.from_numpy(b))
    assert found.auroc_standard_error == pytest.approx(variance**0.5)
    assert detect(torch.zeros(1), torch.ones(5)).auroc_standard_error is None


def test_detection_does_not_change_with_a_rising_function_of_the_score():
    a, b = torch.rand(50), torch.rand(60) + 0.3
    assert detect(a, b) == detect(a.exp() * 3, b.exp() * 3)
    swapped = detect(-b, -a)
    assert swapped.auroc == pytest.approx(detect(a, b).auroc)
    assert swapped.aupr_in == pytest.approx(detect(a, b).aupr_out)


def test_perfect_and_hopeless_detectors():
    perfect = detect(torch.zeros(10), torch.ones(10))
    assert (perfect.auroc, perfect.aupr_in, perfect.aupr_out, perfect.fpr95) == (1, 1, 1, 0)
    constant = detect(torch.zeros(30), torch.zeros(10))
    assert (constant.auroc, constant.aupr_in, constant.aupr_out, constant.fpr95) == (0.5, 0.75, 0.25, 1)
    assert json.loads(json.dumps(constant.to_dict()))["outside"] == 10


def test_threshold_counts_in_whole_numbers():
    """0.95 * 60 is 57.0 only when it is not rounded up on the way: 57 of 60 must pass, not 58."""
    inside = torch.arange(60.0)
    for n in (20, 40, 60, 80, 100, 220, 380):
        inside = torch.arange(float(n))
        outside = torch.tensor([n * 95 // 100 - 0.5, n * 95 // 100 - 1.0])
        assert detect(inside, outside).fpr95 == 0.5


def test_collecting_streams_and_takes_inputs_or_pairs():
    x = torch.randn(11, 4)
    weight = torch.randn(4, 3)
    whole = uncertainties(x @ weight)
    pairs = [(part, torch.zeros(len(part))) for part in x.split(4)]
    for batches in (x.split(4), pairs, iter(pairs)):
        scores = collect_uncertainties(lambda part: part @ weight, batches)
        for name in whole:
            torch.testing.assert_close(scores[name], whole[name])
    found = detect_all(whole, {name: s + 1 for name, s in whole.items()})
    assert found["energy"] == detect(whole["energy"], whole["energy"] + 1)


def test_detection_refuses_bad_input():
    some = torch.rand(3)
    with pytest.raises(LatePhaseValueError, match=r"outside has shape \(0,\)"):
        detect(some, torch.zeros(0))
    with pytest.raises(LatePhaseValueError, match=r"inside has shape \(3, 1\)"):
        detect(some[:, None], some)
    with pytest.raises(LatePhaseValueError, match="not a number"):
        detect(some, torch.tensor([float("nan")]))
    with pytest.raises(LatePhaseValueError, match="data set is empty"):
        collect_uncertainties(lambda x: x, [])
    with pytest.raises(LatePhaseValueError, match="data set is empty"):
        collect_uncertainties(lambda x: x, [torch.zeros(0, 3)])
    with pytest.raises(LatePhaseValueError, match="same predictor"):
        detect_all({"entropy": some}, {"energy": some})
    with pytest.raises(LatePhaseValueError, match="logits"):
        uncertainties(torch.zeros(3))
    with pytest.raises(LatePhaseValueError, match="infinite"):
        uncertainties(torch.tensor([[1.0, float("-inf")]]))


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_noise_is_a_function_of_seed_and_index(kind):
    images = torch.cat(list(NoiseImages(kind, 7, (3, 8, 8), seed=1, batch_size=3)))
    whole = NoiseImages(kind, 7, (3, 8, 8), seed=1)
    assert images.dtype == torch.uint8
    assert images.shape == (7, 3, 8, 8)
    for _ in range(2):
        assert torch.equal(torch.cat(list(whole)), images)
    other = torch.cat(list(NoiseImages(kind, 7, (3, 8, 8), seed=2)))
    assert (other != images).float().mean() > 0.5
    assert not torch.equal(images[0], images[1])


def test_noise_has_the_published_distribution():
    gaussian = torch.cat(list(NoiseImages("gaussian", 40, (3, 16, 16)))).double() / 255
    uniform = torch.cat(list(NoiseImages("uniform", 40, (3, 16, 16)))).double()
    # Clipping N(0.5, 1) at 0 and 1 puts Phi(-0.5) = 0.3085 at either end.
    for end in (0, 1):
        assert float((gaussian == end).double().mean()) == pytest.approx(0.3085, abs=0.01)
    assert float(uniform.mean()) == pytest.approx(127.5, abs=1.0)
    assert float(uniform.std()) == pytest.approx(73.9, abs=0.5)
    assert (uniform.min(), uniform.max()) == (0, 255)


def test_noise_refuses_bad_input():
    with pytest.raises(LatePhaseValueError, match="'pink'; use one of 'gaussian', 'uniform'"):
        NoiseImages("pink", 3, (3, 4, 4))
    with pytest.raises(LatePhaseValueError, match="count: 0"):
        NoiseImages("uniform", 0, (3, 4, 4))
    with pytest.raises(LatePhaseValueError, match="shape"):
        NoiseImages("uniform", 1, (3, 0, 4))
