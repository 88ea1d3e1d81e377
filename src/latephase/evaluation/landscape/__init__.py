"""The loss around and between the members: lines, planes, layers, perturbations.

Everything here works on plain state dicts (`member_states(late)`, `late.averaged_state_dict()`, or files) and on a
function that tells loss and error at given weights (`StateEvaluator`).
"""

from latephase.evaluation.landscape.evaluator import Evaluate, LossAndError, StateEvaluator
from latephase.evaluation.landscape.layers import LayerDisagreement, LayerDistance, layer_disagreement, layer_distances
from latephase.evaluation.landscape.lines import Line, Segment, barrier, line
from latephase.evaluation.landscape.perturbation import Perturbation, direction, perturb
from latephase.evaluation.landscape.plane import Plane, plane
from latephase.evaluation.landscape.states import State, combine, distance

__all__ = [
    "Evaluate",
    "LayerDisagreement",
    "LayerDistance",
    "Line",
    "LossAndError",
    "Perturbation",
    "Plane",
    "Segment",
    "State",
    "StateEvaluator",
    "barrier",
    "combine",
    "direction",
    "distance",
    "layer_disagreement",
    "layer_distances",
    "line",
    "perturb",
    "plane",
]
