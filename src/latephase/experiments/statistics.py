"""Means over seeds, and paired differences between methods with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from scipy import stats


class Summary(TypedDict):
    """A mean over seeds; `se` is its standard error, None for a single seed."""

    mean: float
    se: float | None
    n: int


class Difference(Summary):
    """A mean paired difference; `low` and `high` bound its 95% interval, None for a single seed."""

    low: float | None
    high: float | None


def summarise(values: Sequence[float]) -> Summary:
    """Mean over seeds and its standard error s / sqrt(n), with s^2 the unbiased variance.

    Args:
        values: One value for each seed.

    Returns:
        The summary.

    Example:
        >>> summarise([1.0, 3.0])
        {'mean': 2.0, 'se': 1.0, 'n': 2}
    """
    n = len(values)
    array = np.asarray(values, dtype=np.float64)
    se = float(array.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return {"mean": float(array.mean()), "se": se, "n": n}


def paired_difference(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> Difference:
    """Mean of the differences seed by seed, with Student's t interval on n - 1 degrees of freedom.

    Args:
        ours: One value for each seed.
        theirs: The other method's values, of the same seeds in the same order.
        level: Coverage of the interval.

    Returns:
        The difference; without an interval if there is only one seed.

    Raises:
        ValueError: If the two have different numbers of seeds.
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    summary = summarise(differences)
    if summary["se"] is None:
        return {**summary, "low": None, "high": None}
    half = float(stats.t.ppf(0.5 + level / 2, df=summary["n"] - 1)) * summary["se"]
    return {**summary, "low": summary["mean"] - half, "high": summary["mean"] + half}
