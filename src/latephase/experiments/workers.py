"""Legs spread over processes: the longest first, each as soon as what it starts from is there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from latephase.experiments.config import Compute, Data
from latephase.experiments.console import say_warnings
from latephase.experiments.data import AnyImages, hand_over
from latephase.experiments.errors import ExperimentError
from latephase.experiments.legs import run_leg
from latephase.experiments.plan import Leg
from latephase.experiments.team import Team

# Called with the index of a leg and the minibatches it has trained on since the last call.
OnProgress = Callable[[int, int], None]
Sources = Sequence[tuple[Data, tuple[AnyImages, AnyImages | None]]]


def default_workers(compute: Compute, device_type: str) -> int:
    """How many processes a study uses if nobody says.

    Args:
        compute: Threads of each process.
        device_type: `cpu` or an accelerator's.

    Returns:
        As many as the cores have room for; one on an accelerator.
    """
    if device_type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // compute.threads)


def run_legs(legs: Sequence[Leg], workers: int, sources: Sources, on_progress: OnProgress) -> None:
    """Train legs, each once and after the leg it starts from.

    Args:
        legs: The legs; none that is done already.
        workers: Number of processes; 1 trains them here.
        sources: Images that were read already, and where they come from.
        on_progress: Called as training proceeds.

    Raises:
        ExperimentError: If a leg fails; what is finished stays finished.
    """
    if workers == 1:
        for i in _order(legs):
            run_leg(legs[i], _meter(lambda steps, i=i: on_progress(i, steps)))  # type: ignore[misc]
        return
    context = multiprocessing.get_context("spawn")
    pool = []
    try:
        for _ in range(min(workers, len(legs))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, sources), daemon=True)
            process.start()
            theirs.close()
            pool.append((process, ours))
        _hand_out(legs, {ours: process for process, ours in pool}, on_progress)
    finally:
        for process, ours in pool:
            ours.close()
            process.terminate()
            process.join()


def share_legs(legs: Sequence[Leg], missing: Sequence[int], team: Team) -> None:
    """Train legs in the processes of a team, which see the same files: each takes the next one when it has time.

    The first process comes back when all are done.

    Args:
        legs: The legs; the same ones, in the same order, in every process.
        missing: Indices of those that are not done.
        team: The processes.

    Raises:
        ExperimentError: If a leg fails, in whatever process; what is finished stays finished.
    """
    waiting = [legs[i] for i in missing]
    order = _order(waiting)
    makers = {leg.folder: i for i, leg in enumerate(waiting) if not leg.outputs}
    while (number := team.take("legs")) < len(order):
        leg = order[number]
        maker = _maker(waiting[leg], makers)
        if maker is not None:
            team.wait(f"leg-{maker}")
        try:
            run_leg(waiting[leg])
        except ExperimentError as error:
            team.fail(str(error))
            raise
        team.tell(f"leg-{leg}")
    if team.leads:
        for leg in order:
            team.wait(f"leg-{leg}")
    team.meet("left")


def _hand_out(legs: Sequence[Leg], pool: dict[Connection, Any], on_progress: OnProgress) -> None:
    """Keep every process at work until no leg is left."""
    waiting = _order(legs)
    makers = {leg.folder: i for i, leg in enumerate(legs) if not leg.outputs}
    done: set[int] = set()
    idle, busy = list(pool), dict[Connection, int]()
    while waiting or busy:
        ready = [i for i in waiting if _maker(legs[i], makers) in (None, *done)]
        while idle and ready:
            connection, leg = idle.pop(), ready.pop(0)
            waiting.remove(leg)
            busy[connection] = leg
            connection.send(legs[leg])
        for heard in wait(list(busy)):
            connection = cast("Connection", heard)
            try:
                kind, value = connection.recv()
            except EOFError:
                process = pool[connection]
                process.join()
                raise ExperimentError(
                    f"the process that trained {legs[busy[connection]].name} ended with exit code {process.exitcode} "
                    "(out of memory?); what is finished is kept"
                ) from None
            if kind == "steps":
                on_progress(busy[connection], value)
            elif kind == "done":
                done.add(busy.pop(connection))
                idle.append(connection)
            else:
                raise value


def _order(legs: Sequence[Leg]) -> list[int]:
    """Shared legs first, since others wait for them; then the longest first, which evens out the ends."""
    return sorted(range(len(legs)), key=lambda i: (bool(legs[i].outputs), legs[i].begin - legs[i].until))


def _maker(leg: Leg, makers: dict[Any, int]) -> int | None:
    """The leg that has to be done before this one, if it is not done already."""
    return None if leg.after is None else makers.get(leg.after.parent)


def _work(connection: Connection, sources: Sources) -> None:
    """What a process of the pool does: train what it is sent, and say how far it is."""
    # An interruption from the keyboard reaches every process; the one that started them ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    say_warnings()
    for data, images in sources:
        hand_over(data, images)
    while True:
        try:
            leg = connection.recv()
        except EOFError:
            return
        try:
            run_leg(leg, _meter(lambda steps: connection.send(("steps", steps))))
        except Exception as error:
            if not isinstance(error, ExperimentError):
                error = RuntimeError(f"{error}\n{traceback.format_exc()}")
            connection.send(("error", error))
        else:
            connection.send(("done", None))


def _meter(report: Callable[[int], None]) -> Callable[[int], None]:
    """Turn a call for every minibatch into a few calls a second."""
    last: int | None = None
    due = 0.0

    def after_step(step: int) -> None:
        nonlocal last, due
        if last is None:
            last = step - 1
        now = time.monotonic()
        if now >= due:
            report(step - last)
            last, due = step, now + 0.2

    return after_step
