"""Learning curves: the expected loss against minibatches, with an early and a late start."""

from __future__ import annotations

import numpy as np

from latephase import nqp
from latephase.experiments.theory.config import TheoryConfig
from latephase.experiments.theory.draw import look
from latephase.experiments.theory.panel import Curve, Figure, Panel
from latephase.experiments.theory.setting import Method, late_phase, log_counts


def figure(config: TheoryConfig) -> Figure:
    """Learning curves of late-phase training and of its neighbours.

    Args:
        config: What to compute.

    Returns:
        One panel for the start at 0, one for the late start.
    """
    quadratic = config.quadratic
    problem = nqp.Problem(nqp.power_law(quadratic.directions))
    lr, last = quadratic.lr, quadratic.horizon

    def curve(label: str, method: Method, counts: list[int], curve_look: str) -> Curve:
        losses = method.expected_loss(problem, counts)
        return Curve(label, np.array(counts, dtype=np.float64), np.asarray(losses.average), curve_look)

    neighbours = [
        curve("SGD", nqp.SGD(lr), log_counts(5, last), look(1)),
        curve("EMA .99", nqp.EMA(lr, decay=0.99), log_counts(5, last), "ema"),
        curve("Lookahead", nqp.Lookahead(lr, k=5, alpha=0.5), log_counts(5, last, 5), "lookahead"),
    ]
    panels = []
    for name, start in (("start-0", 0), ("late-start", quadratic.late_start)):
        late = [
            curve(
                f"K = {number}",
                late_phase(number, lr, start=start),
                log_counts(max(5, start), last, number, start),
                look(number),
            )
            for number in quadratic.members
        ]
        panels.append(
            Panel(
                f"minibatches-{name}",
                f"Start at {start} minibatches",
                "minibatches",
                "expected loss",
                [*neighbours, *late],
                x_log=True,
                marks=(start,) if start else (),
            )
        )
    text = (
        f"Expected loss of the averaged model against minibatches (learning rate {lr:g}, n = {problem.directions}). A"
        " round of K members costs K minibatches, so from the beginning more members learn more slowly (first panel). A"
        " late start pays at once: the loss falls to its lower floor within some rounds (second panel)."
    )
    return Figure("Learning curves", text, panels)
