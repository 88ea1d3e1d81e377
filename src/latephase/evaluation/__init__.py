"""How good a set of predictions is, and what the members of a late phase add to it.

Packages of their own, which import what they need: `latephase.evaluation.corruptions`, `.flatness`, `.landscape`.
"""

from latephase.evaluation.calibration import (
    ReliabilityBin,
    Temperature,
    bins_of_sums,
    fit_temperature,
    reliability_bins,
)
from latephase.evaluation.members import AverageAgainstEnsemble, MemberComparison, compare_average, member_states
from latephase.evaluation.metrics import Metrics
from latephase.evaluation.noise import NoiseImages
from latephase.evaluation.ood import Detection, collect_uncertainties, detect, detect_all, uncertainties
from latephase.evaluation.predictions import evaluate_members, evaluate_model, in_use
from latephase.evaluation.risk_coverage import RiskCoverage, RiskCoverageCurve, risk_coverage

__all__ = [
    "AverageAgainstEnsemble",
    "Detection",
    "MemberComparison",
    "Metrics",
    "NoiseImages",
    "ReliabilityBin",
    "RiskCoverage",
    "RiskCoverageCurve",
    "Temperature",
    "bins_of_sums",
    "collect_uncertainties",
    "compare_average",
    "detect",
    "detect_all",
    "evaluate_members",
    "evaluate_model",
    "fit_temperature",
    "in_use",
    "member_states",
    "reliability_bins",
    "risk_coverage",
    "uncertainties",
]
