"""The state of a phase: what the model's and the optimizers' own state dicts do not hold.

Tensors, numbers and strings only, so that `torch.load(weights_only=True)` reads it back.
"""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import LatePhaseValueError
from .families import Installation
from .members import Members
from .rounds import Rounds
from .sharding import part_of, placed
from .steps import Steps

FORMAT = 1
_KINDS: dict[str, type | tuple[type, ...]] = {
    "phase": str,
    "members": int,
    "turn": int,
    "rounds": int,
    "values": Mapping,
    "shared": Mapping,
    "plain": Mapping,
    "optimizers": (list, tuple),
    "generator": Tensor,
}


def save(
    model: nn.Module,
    installations: list[Installation],
    members: Members | None,
    rounds: Rounds,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Collect the state; see `LatePhase.state_dict`."""
    if members is None:
        # Before the start a factor has one value, and the model's state dict holds it folded.
        factors = {n: p for part in installations for n, p in part.parameters.items() if p in part.weight_of}
        values = {name: _copy(p).unsqueeze(0) for name, p in factors.items()}
        shared, optimizers = {}, []
    else:
        members.park()
        own, stacks = members.sites.own(), zip(members.names, members.stacks, strict=True)
        values = {name: placed(_copy(stack), own[name], 1) for name, stack in stacks}
        shared = {n: placed(_copy(value), members.sites.shared[n]) for n, value in members.shared_values().items()}
        optimizers = [_save_steps(steps, rounds) for steps in rounds.steps]
    return {
        "format": FORMAT,
        "turn": rounds.turn,
        "ranks": rounds.ranks.world,
        "rounds": rounds.completed,
        "values": values,
        "shared": shared,
        "plain": {n: _copy(p) for part in installations for n, p in part.plain.items() if n not in shared},
        "optimizers": optimizers,
        "parameters": _positions(model, rounds),
        "generator": generator.get_state(),
    }


def _positions(model: nn.Module, rounds: Rounds) -> list[list[str]]:
    """For every optimizer, which weight is at which of its positions; what is no weight of the model has no name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [steps.optimizer.param_groups for steps in rounds.steps]
    return [[names.get(p, "") for group in each for p in group["params"]] for each in groups]


@torch.no_grad()
def restore(
    state: Mapping[str, Any],
    installations: list[Installation],
    members: Members | None,
    rounds: Rounds,
    generator: torch.Generator,
) -> None:
    """The way back from `save`, for a state that `check` has accepted."""
    for part in installations:
        for name, parameter in part.plain.items():
            if name in state["plain"]:
                parameter.copy_(state["plain"][name])
    generator.set_state(state["generator"].cpu())
    if members is None:
        for part in installations:
            for name, parameter in part.parameters.items():
                if parameter in part.weight_of:
                    parameter.copy_(state["values"][name][0])
        return
    members.restore(state["values"], state["shared"])
    rounds.turn, rounds.completed = _trained(state) // rounds.ranks.world, state["rounds"]
    for steps, saved in zip(rounds.steps, state["optimizers"], strict=False):
        _load_steps(steps, saved, rounds)


def _trained(state: Mapping[str, Any]) -> int:
    """How many members have had their turn in the present round; a turn is one member's for every rank."""
    trained: int = state["turn"] * state.get("ranks", 1)
    return trained


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _save_steps(steps: Steps, rounds: Rounds) -> dict[str, Any]:
    """One optimizer's part: its members' states by weight, and the round's sum of base gradients by position."""
    names = {parameter: name for name, parameter in rounds.late.items()}
    steps.park(rounds.member)
    steps.bring(rounds.member)
    states = rounds.ranks.gather_states(steps.states, steps.late)
    base = steps.base
    sums = rounds.sum_over_ranks([steps.sums.get(p) for p in base], base)
    return {
        "done": steps.done,
        "sums": {i: _copy(total) for i, total in enumerate(sums) if total is not None},
        "states": [
            {names[p]: {key: _copy(value) for key, value in state.items()} for p, state in member.items()}
            for member in states
        ],
    }


def _load_steps(steps: Steps, saved: Mapping[str, Any], rounds: Rounds) -> None:
    """The way back from `_save_steps`."""
    steps.done = saved["done"]
    base = steps.base
    # A sum over the ranks is one rank's to carry on.
    sums = saved["sums"] if rounds.ranks.rank == 0 else {}
    steps.sums = {base[int(i)]: _part(_copy(total).to(base[int(i)].device), base[int(i)]) for i, total in sums.items()}
    steps.states = [
        {rounds.late[name]: _placed(steps.optimizer, rounds.late[name], state) for name, state in member.items()}
        for member in saved["states"]
    ]
    steps.bring(rounds.member)


def _part(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A tensor of an optimizer's, or a gradient, sharded as its parameter is; what has another shape is nobody's."""
    if value.shape != parameter.shape:
        return value
    return placed(part_of(value, parameter), parameter)


def _placed(optimizer: Optimizer, parameter: nn.Parameter, state: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's optimizer state on the parameter's device; step counts stay where the optimizer wants them."""
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    counts_on_device = group.get("capturable") or group.get("fused")

    def place(key: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if key == "step" and not counts_on_device:
            return _copy(value)
        return _part(_copy(value).to(parameter.device), parameter)

    return {key: place(key, value) for key, value in state.items()}


def check_kind(saved: Any) -> None:
    """Refuse what is no state of a phase at all, such as one that somebody put together by hand.

    Args:
        saved: what was given.

    Raises:
        LatePhaseValueError: it lacks something, or holds another kind of thing there.
    """
    if not isinstance(saved, Mapping):
        raise LatePhaseValueError(f"load_state_dict: {type(saved).__name__}; give what state_dict() returned")
    if saved.get("format") != FORMAT:
        raise LatePhaseValueError(f"load_state_dict: format {saved.get('format')!r}; this version reads {FORMAT}")
    odd = [key for key, kind in _KINDS.items() if not isinstance(saved.get(key), kind)]
    for key in ("values", "shared"):
        if key not in odd and not all(isinstance(value, Tensor) for value in saved[key].values()):
            odd.append(key)
    parts = saved["optimizers"] if "optimizers" not in odd else []
    if any(not isinstance(part, Mapping) or not {"done", "sums", "states"} <= part.keys() for part in parts):
        odd.append("optimizers")
    names = saved.get("parameters", [])  # older states have none
    if not isinstance(names, (list, tuple)) or not all(isinstance(each, (list, tuple)) for each in names):
        odd.append("parameters")
    if odd:
        raise LatePhaseValueError(
            f"load_state_dict: {', '.join(odd)} missing or not what state_dict() has there; give what it returned"
        )
    if not 0 <= _trained(saved) < max(1, saved["members"]):
        raise LatePhaseValueError(
            f"load_state_dict: turn {saved['turn']} of {saved.get('ranks', 1)} ranks, of {saved['members']} members; "
            "give what state_dict() returned"
        )


def check(
    saved: Mapping[str, Any],
    model: nn.Module,
    phase: str,
    count: int,
    own: Mapping[str, Tensor],
    shared: Mapping[str, Tensor],
    rounds: Rounds,
) -> None:
    """Refuse a state that does not belong to this phase, before anything is changed.

    Args:
        saved: the state.
        model: the model.
        phase: "attached" or "late": where this phase is.
        count: its number of members.
        own: the tensors that each member has, by name.
        shared: the tensors that all members share and that differ in the average, by name.
        rounds: its optimizers.

    Raises:
        LatePhaseValueError: another format, another number of members, other sites, shapes or optimizers.
    """
    if saved["phase"] not in ("attached", "late"):
        raise LatePhaseValueError(f"load_state_dict: the phase was {saved['phase']!r}; nothing is left to resume")
    if saved["phase"] == "attached" and phase == "late":
        raise LatePhaseValueError("load_state_dict: the state is from before start(), and this phase has started")
    if saved["members"] != count:
        raise LatePhaseValueError(f"load_state_dict: saved with {saved['members']} members, this phase has {count}")
    for there, here, stacked in ((saved["values"], own, 1), (saved["shared"], shared, 0)):
        _check_tensors(there, here, stacked)
    if _trained(saved) % rounds.ranks.world:
        raise LatePhaseValueError(
            f"load_state_dict: saved after {_trained(saved)} of {count} members had their turn, on {saved['ranks']} "
            f"ranks, and {rounds.ranks.world} ranks train {rounds.ranks.world} members at a time; resume on "
            f"{saved['ranks']} ranks, or save at the end of a round (late.turn == 0)"
        )
    if saved["phase"] == "late" and len(saved["optimizers"]) < len(rounds.steps):
        raise LatePhaseValueError(
            f"load_state_dict: saved with {len(saved['optimizers'])} optimizers, this phase has {len(rounds.steps)}"
        )
    _check_positions(saved, model, rounds)
    for steps, part in zip(rounds.steps, saved["optimizers"], strict=False):
        for index, total in part["sums"].items():
            if int(index) >= len(steps.base) or total.shape != steps.base[int(index)].shape:
                raise LatePhaseValueError(
                    f"load_state_dict: base weight number {index} of {type(steps.optimizer).__name__} does not have "
                    f"the saved gradient's shape {tuple(total.shape)}; build the optimizer's groups as they were"
                )


def _check_positions(saved: Mapping[str, Any], model: nn.Module, rounds: Rounds) -> None:
    # An optimizer's state dict knows its weights by position alone, and torch loads one weight's moments as another's.
    # Shapes that differ are then memory that a fused kernel reads and writes beyond its end.
    for number, (there, here) in enumerate(zip(saved.get("parameters", ()), _positions(model, rounds), strict=False)):
        if list(there) != here:
            pairs = zip_longest(there, here, fillvalue="nothing")
            position, (one, other) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
            raise LatePhaseValueError(
                f"load_state_dict: at position {position} of optimizer {number} "
                f"({type(rounds.steps[number].optimizer).__name__}) was {one or 'no weight of the model'!r}, and here "
                f"is {other or 'no weight of the model'!r}; torch's optimizers know their weights by position, so "
                "build it as when it was saved: from the same groups, before or after LatePhase as there"
            )


def _check_tensors(there: Mapping[str, Tensor], here: Mapping[str, Tensor], stacked: int) -> None:
    missing, unknown = [n for n in here if n not in there], [n for n in there if n not in here]
    if missing or unknown:
        raise LatePhaseValueError(
            f"load_state_dict: saved with other late-phase weights; missing {missing[:5]}, unknown {unknown[:5]}"
        )
    for name, tensor in here.items():
        shape, dtype = there[name].shape[stacked:], there[name].dtype
        if shape != tensor.shape or dtype != tensor.dtype:
            raise LatePhaseValueError(
                f"load_state_dict: {name!r} was saved as {tuple(shape)} {dtype}, the model has "
                f"{tuple(tensor.shape)} {tensor.dtype}"
            )
