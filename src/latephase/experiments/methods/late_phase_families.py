"""Late-phase weights of one family each: the norms, rank-1 factors, every weight."""

from __future__ import annotations

from latephase.experiments.methods.late_phase import LatePhase


class LatePhaseNorm(LatePhase):
    """The normalisation layers alone."""

    name = "late-phase-norm"
    label = "late-phase, norms"
    summary = "K members of the norms' scales and shifts from T0 on, averaged into one model"
    families = ("norm",)


class LatePhaseRankOne(LatePhase):
    """Rank-1 factors of every weight matrix and convolution, 1 at T0."""

    name = "late-phase-rank-one"
    label = "late-phase, rank-1"
    summary = "K members of rank-1 factors of the weights from T0 on, averaged into one model"
    families = ("rank-one",)


class LatePhaseFull(LatePhase):
    """Every weight: K separate networks from T0 on."""

    name = "late-phase-full"
    label = "late-phase, all weights"
    summary = "K members of every weight from T0 on, averaged into one model"
    families = ("full",)
