"""Paired timing: two pieces of work in turn, in one process, and the ratio of each pair."""

import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios with a distribution-free 95% interval.

    Args:
        median: median of the ratios.
        low: lower end of the interval.
        high: upper end of the interval.
        pairs: how many pairs.
    """

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}] over {self.pairs} pairs"


def interval(ratios: list[float]) -> Ratio:
    """The interval between two order statistics that holds the median with a probability of at least 95%."""
    ordered, n = sorted(ratios), len(ratios)
    cumulative, below = 0.0, 0
    while cumulative + math.comb(n, below) / 2**n <= 0.025:
        cumulative += math.comb(n, below) / 2**n
        below += 1
    if below == 0:
        raise ValueError(f"{n} pairs are too few for a 95% interval; use 6 or more")
    return Ratio(statistics.median(ordered), ordered[below - 1], ordered[n - below], n)


def compare(
    reference: Callable[[], object],
    work: Callable[[], object],
    pairs: int,
    warmup: int = 3,
    synchronize: Callable[[], None] = lambda: None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    parts: int = 1,
) -> Ratio:
    """Time `reference` and `work` in turn, in random order within a pair.

    Args:
        reference: what the other is measured by.
        work: the other.
        pairs: how many times each.
        warmup: calls of each before that.
        synchronize: waits for the device.
        seed: of the order.
        clock: seconds; `time.process_time` counts the process's own, which a busy machine disturbs less, and is the
            same as the wall's for one thread on an idle one.
        parts: calls of each in a pair, in turn: where one call is a part of the work (a minibatch of a round), what
            disturbs the machine meanwhile falls on both.

    Returns:
        Time of the reference divided by time of the work: above 1 the work is the faster of the two.
    """

    def timed(call: Callable[[], object]) -> float:
        synchronize()
        start = clock()
        call()
        synchronize()
        return clock() - start

    for _ in range(warmup * parts):
        reference(), work()
    order, ratios = random.Random(seed), []
    for _ in range(pairs):
        first = second = 0.0
        for _ in range(parts):
            if order.random() < 0.5:
                first += timed(reference)
                second += timed(work)
            else:
                second += timed(work)
                first += timed(reference)
        ratios.append(first / second)
    return interval(ratios)
