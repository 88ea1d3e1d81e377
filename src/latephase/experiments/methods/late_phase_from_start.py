"""Baseline: late-phase weights that are not late."""

from __future__ import annotations

from latephase.experiments.methods.late_phase import LatePhase


class LatePhaseFromStart(LatePhase):
    """Late-phase weights that are not late: T0 = 0."""

    name = "late-phase-from-start"
    label = "late-phase, T0 = 0"
    summary = "late-phase weights from the first minibatch on"
    waits = False

    @property
    def start(self) -> float:
        """The first minibatch."""
        return 0.0
