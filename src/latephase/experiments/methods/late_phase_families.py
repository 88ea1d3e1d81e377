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


class RankOneAlone(LatePhase):
    """The rank-1 factors of `late-phase-rank-one` without members: plain training of more parameters from T0 on."""

    name = "rank-one"
    label = "rank-1, no members"
    summary = "one set of rank-1 factors of the weights from T0 on, in plain training"
    families = ("rank-one",)
    count = 1


class LatePhaseLoRA(LatePhase):
    """Low-rank adapters beside all other weights, which train as well; merged by the mean of their products."""

    name = "late-phase-lora"
    label = "late-phase, LoRA"
    summary = "K members of low-rank adapters from T0 on, averaged into one model"
    families = ("lora",)


class LoRAAlone(LatePhase):
    """The adapters of `late-phase-lora` without members."""

    name = "lora"
    label = "LoRA, no members"
    summary = "one set of low-rank adapters from T0 on, in plain training of all weights"
    families = ("lora",)
    count = 1


class LatePhaseFull(LatePhase):
    """Every weight: K separate networks from T0 on."""

    name = "late-phase-full"
    label = "late-phase, all weights"
    summary = "K members of every weight from T0 on, averaged into one model"
    families = ("full",)
