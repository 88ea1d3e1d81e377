"""How good a set of predictions is, and what the members of a late phase add to it."""

from latephase.evaluation.metrics import Metrics
from latephase.evaluation.predictions import evaluate_members, evaluate_model

__all__ = ["Metrics", "evaluate_members", "evaluate_model"]
