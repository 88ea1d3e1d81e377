"""How far the members are from each other, layer by layer: in weights, and in what they predict."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latephase.errors import LatePhaseValueError
from latephase.evaluation._result import Result
from latephase.evaluation.landscape.evaluator import StateEvaluator
from latephase.evaluation.landscape.states import State, check_states, is_statistic, weight_names


@dataclass(frozen=True)
class LayerDistance(Result):
    """Distances of the members' weights in one layer.

    Attributes:
        layer: Its dotted name.
        weights: How many weights it has.
        norm: Euclidean norm of the reference's weights.
        to_reference: Each member's Euclidean distance from the reference.
        pairwise: The mean distance of two members.
        relative: Root mean square of `to_reference`, divided by `norm`; None where the norm is 0.
    """

    layer: str
    weights: int
    norm: float
    to_reference: tuple[float, ...]
    pairwise: float
    relative: float | None


def layers_of(state: State) -> dict[str, list[str]]:
    """The tensors of each layer, which is everything up to the last dot of a name.

    Args:
        state: A plain state dict.

    Returns:
        For each layer that has weights, the names of all its tensors, running statistics included.
    """
    layers: dict[str, list[str]] = {}
    for name in state:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    weighty = {name.rpartition(".")[0] for name in weight_names(state)}
    return {layer: names for layer, names in layers.items() if layer in weighty}


def layer_distances(states: Sequence[State], reference: State | None = None) -> tuple[LayerDistance, ...]:
    """Distances between members, and from their reference, for every layer.

    Args:
        states: At least two members' plain state dicts.
        reference: What distances are measured from; by default the members' mean, in float64. The averaged model is
            another choice, which for BatchNorm differs from the mean by its exact fold.

    Returns:
        One entry for each layer with weights, in the model's order; layers that the members share have distance 0.

    Raises:
        LatePhaseValueError: Fewer than two states, or states of different models.

    Example:
        >>> a, b = ({"fc.weight": torch.tensor([v, 1.0])} for v in (0.0, 2.0))
        >>> layer_distances([a, b])[0].to_reference, layer_distances([a, b])[0].pairwise
        ((1.0, 1.0), 2.0)
    """
    check_states("layer_distances", states if reference is None else [*states, reference], least=2)
    if len(states) < 2:
        raise LatePhaseValueError(f"layer_distances: {len(states)} member; it needs at least 2")
    found = []
    for layer, names in layers_of(states[0]).items():
        squares = torch.zeros(len(states), dtype=torch.float64)
        between = torch.zeros(len(states), len(states), dtype=torch.float64)
        norm = 0.0
        weights = 0
        for name in weight_names({n: states[0][n] for n in names}):
            rows = torch.stack([state[name].double().flatten() for state in states])
            # Relative to the first, so that equal members have distance exactly 0.
            centre = rows[0] + (rows - rows[0]).mean(dim=0) if reference is None else reference[name].double().flatten()
            norm += float(centre.square().sum())
            weights += rows.shape[1]
            squares += (rows - centre).square().sum(dim=1).cpu()
            for i in range(len(rows)):
                between[i] += (rows - rows[i]).square().sum(dim=1).cpu()
        pairs = len(states) * (len(states) - 1)
        relative = (float(squares.mean()) / norm) ** 0.5 if norm else None
        distances = tuple(squares.sqrt().tolist())
        found.append(LayerDistance(layer, weights, norm**0.5, distances, float(between.sqrt().sum()) / pairs, relative))
    return tuple(found)


@dataclass(frozen=True)
class LayerDisagreement(Result):
    """How many predictions one layer of the members changes.

    Attributes:
        layer: Its dotted name; "" with `whole` set is the whole model.
        whole: Whether all layers were exchanged at once.
        disagreement: For each member, the fraction of samples that the reference with the member's layer in it puts
            into another class than the reference.
        statistics: How BatchNorm's running statistics were handled: "recomputed", "stored" (a layer's go with its
            weights), or "none" where there are none.
    """

    layer: str
    whole: bool
    disagreement: tuple[float, ...]
    statistics: str


def layer_disagreement(
    states: Sequence[State], reference: State, evaluator: StateEvaluator, layers: Sequence[str] | None = None
) -> tuple[LayerDisagreement, ...]:
    """What each layer adds to the members' disagreement: put it alone into the reference, and count changed classes.

    A layer's running statistics go with its weights; with `statistics_batches` the evaluator computes all of them
    anew. It costs one pass for each member and each layer in which the members differ.

    Args:
        states: The members' plain state dicts.
        reference: The model whose layers are exchanged, normally the averaged one.
        evaluator: Of a model that the state dicts load into.
        layers: Dotted names of the layers; by default all in which a member differs from the reference.

    Returns:
        One entry for each layer, and first of all one with every layer exchanged.

    Raises:
        LatePhaseValueError: No members, states of different models, or a layer that there is not.

    Example:
        >>> import torch
        >>> from latephase.evaluation.landscape import StateEvaluator
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> batches = [(torch.randn(8, 3), torch.randint(2, (8,)))]
        >>> mine = {name: value.clone() for name, value in model.state_dict().items()}
        >>> other = {**mine, "1.weight": -mine["1.weight"], "1.bias": -mine["1.bias"]}
        >>> all_layers, last = layer_disagreement([other], mine, StateEvaluator(model, batches))
        >>> last.layer, last.disagreement
        ('1', (1.0,))
    """
    check_states("layer_disagreement", [*states, reference], least=2)
    known = layers_of(reference)
    for layer in layers or ():
        if layer not in known:
            raise LatePhaseValueError(
                f"layer_disagreement: no layer {layer!r}; the layers with weights are {', '.join(known)}"
            )
    if layers is None:
        layers = [layer for layer, names in known.items() if _differ(states, reference, names)]
    predicted = evaluator.classes(reference)

    def entry(layer: str, whole: bool, names: Sequence[str]) -> LayerDisagreement:
        changed = [evaluator.classes(_exchanged(reference, state, names)) != predicted for state in states]
        fractions = tuple(float(c.double().mean()) for c in changed)
        return LayerDisagreement(layer, whole, fractions, evaluator.statistics)

    return entry("", True, list(reference)), *(entry(layer, False, known[layer]) for layer in layers)


def _differ(states: Sequence[State], reference: State, names: Sequence[str]) -> bool:
    return any(
        not torch.equal(state[name], reference[name])
        for name in names
        for state in states
        if not (is_statistic(name) and not reference[name].is_floating_point())
    )


def _exchanged(reference: State, member: State, names: Sequence[str]) -> OrderedDict[str, Tensor]:
    taken = set(names)
    return OrderedDict((name, member[name] if name in taken else tensor) for name, tensor in reference.items())
