"""Paired timing: two pieces of work in turn, in one process, and the ratio of each pair.

Where in memory a network happens to lie can make it faster or slower by more than what is measured here, for as long as
it lives. So what is measured closely is built anew several times, and the interval is over these.
"""

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Median of paired ratios with a distribution-free 95% interval.

    Args:
        median: median of the ratios.
        low: lower end of the interval.
        high: upper end of the interval.
        pairs: how many pairs.
        instances: how many times both were built; with more than one, median and interval are those of the instances'
            medians.
    """

    median: float
    low: float
    high: float
    pairs: int
    instances: int = 1

    def __str__(self) -> str:
        built = f", built {self.instances} times" if self.instances > 1 else ""
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}] over {self.pairs} pairs{built}"


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
    return interval(_ratios(reference, work, pairs, warmup, synchronize, random.Random(seed), clock, parts))


def compare_instances(
    build: Callable[[bool], tuple[Callable[[], object], Callable[[], object]]],
    instances: int,
    pairs: int,
    synchronize: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    parts: int = 1,
) -> Ratio:
    """`compare` over several builds of both.

    Args:
        build: makes reference and work, the one or the other first, as it is told.
        instances: how many times.
        pairs: of each instance.
        synchronize: see `compare`.
        clock: see `compare`.
        parts: see `compare`.

    Returns:
        Median and interval of the instances' medians.
    """
    order, medians = random.Random(0), []
    for instance in range(instances):
        reference, work = build(instance % 2 == 0)
        ratios = _ratios(reference, work, pairs, max(1, 3 // parts), synchronize, order, clock, parts)
        medians.append(statistics.median(ratios))
        del reference, work
    return dataclasses.replace(interval(medians), pairs=instances * pairs, instances=instances)


def _ratios(
    reference: Callable[[], object],
    work: Callable[[], object],
    pairs: int,
    warmup: int,
    synchronize: Callable[[], None],
    order: random.Random,
    clock: Callable[[], float],
    parts: int,
) -> list[float]:
    def timed(call: Callable[[], object]) -> float:
        synchronize()
        start = clock()
        call()
        synchronize()
        return clock() - start

    for _ in range(warmup * parts):
        reference(), work()
    ratios = []
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
    return ratios
