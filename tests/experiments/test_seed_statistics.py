"""Means over seeds and paired intervals against SciPy."""

import numpy as np
import pytest
from scipy import stats

from latephase.experiments.statistics import paired_difference, summarise


@pytest.mark.parametrize("n", [2, 3, 10, 48])
def test_paired_differences_equal_scipys(n: int) -> None:
    rng = np.random.default_rng(n)
    ours, theirs = rng.normal(0.9, 0.02, n), rng.normal(0.88, 0.02, n)
    result = paired_difference(ours.tolist(), theirs.tolist())
    reference = stats.ttest_rel(ours, theirs)
    interval = reference.confidence_interval(0.95)
    assert result["mean"] == pytest.approx(float(np.mean(ours - theirs)), rel=1e-12)
    assert (result["low"], result["high"]) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert result["n"] == n


def test_summaries_equal_scipys() -> None:
    values = [0.91, 0.93, 0.9, 0.97]
    summary = summarise(values)
    assert summary["mean"] == pytest.approx(np.mean(values))
    assert summary["se"] == pytest.approx(stats.sem(values))


def test_one_seed_has_no_interval_and_different_seeds_do_not_pair() -> None:
    assert paired_difference([0.5], [0.25]) == {"mean": 0.25, "se": None, "n": 1, "low": None, "high": None}
    with pytest.raises(ValueError, match="zip"):
        paired_difference([0.5], [0.25, 0.3])
