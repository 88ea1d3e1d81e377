"""What each process does in the tests of torch.distributed.checkpoint, which test_distributed_checkpoints.py judges."""

from collections.abc import Callable

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

import latephase
from cases import OPTIMIZERS, Case, train
from data_parallel_ranks import attach as attach_parallel
from latephase.integrations.distributed_checkpoint import PhaseState
from places import SIZE, TURNS, Place, held
from sharded_ranks import attach as attach_sharded

CASES = [
    Case(model="ln_mlp", optimizer="adamw", start=2),
    Case(model="bn_cnn", optimizer="nesterov", start=2),
    Case(model="ln_mlp", family="full", optimizer="sgd", start=0),
]
STOP = 4  # minibatches after the start: in the middle of the second round of three
SPREAD = Case(model="ln_mlp", optimizer="nesterov", members=8, start=2)
BEFORE, AFTER = 12, 24  # minibatches at the checkpoint, in the middle of the second round, and in all


def attach(case: Case, place: Place, how: str):
    """What the loop calls, its optimizer and the phase: sharded, replicated or alone."""
    if how == "sharded":
        return attach_sharded(case, place)
    if how == "replicated":
        return attach_parallel(case, place)
    return alone(case, place, members_over_ranks=how == "spread")


def alone(case: Case, place: Place, **options):
    model = case.plain()
    late = latephase.LatePhase(
        model, case.members, case.weights(), base_gradient=case.gamma, process_group=place.group, **options
    )
    return model, late.optimizer(OPTIMIZERS[case.optimizer](model.parameters())), late


def save(place: Place, path: str, called: nn.Module, optimizer, late: latephase.LatePhase) -> None:
    """The user's lines."""
    state = {
        "model": get_model_state_dict(called),
        "optimizer": get_optimizer_state_dict(called, optimizer),
        "late": PhaseState(late),
    }
    dcp.save(state, checkpoint_id=place.folder / path, process_group=place.group)


def load(place: Place, path: str, called: nn.Module, optimizer, late: latephase.LatePhase) -> None:
    """The user's lines."""
    state = {
        "model": get_model_state_dict(called),
        "optimizer": get_optimizer_state_dict(called, optimizer),
        "late": PhaseState(late, place.folder / path),
    }
    dcp.load(state, checkpoint_id=place.folder / path, process_group=place.group)
    set_model_state_dict(called, state["model"])
    set_optimizer_state_dict(called, optimizer, state["optimizer"])


def shares(case: Case, place: Place) -> list:
    return [place.share(batch) for batch in case.batches(case.start + TURNS, size=SIZE)]


def saved(place: Place, index: int, how: str) -> dict:
    """Saved on four ranks in the middle of a round; these go on to the end."""
    case = CASES[index]
    called, optimizer, late = attach(case, place, how)
    batches = shares(case, place)
    train(case, called, optimizer, batches[: case.start])
    late.start()
    train(case, called, optimizer, batches[case.start : case.start + STOP])
    save(place, f"{index}-{how}", called, optimizer, late)
    train(case, called, optimizer, batches[case.start + STOP :])
    return held(late)


def resumed(place: Place, index: int, how: str, then: str) -> dict:
    """Loaded on fewer ranks, or on as many, and trained to the end."""
    case = CASES[index]
    called, optimizer, late = attach(case, place, then)
    load(place, f"{index}-{how}", called, optimizer, late)
    train(case, called, optimizer, shares(case, place)[case.start + STOP :])
    sharded = isinstance(called, FSDPModule)
    return {**held(late), "turn": late.turn, "rounds": late.rounds, "sharded": sharded}


def spread(place: Place) -> dict:
    """Members over four ranks: saved when four of the eight have had their turn in the second round."""
    called, optimizer, late = attach(SPREAD, place, "spread")
    train(SPREAD, called, optimizer, SPREAD.batches(SPREAD.start))
    late.start()
    stream = list(SPREAD.batches(AFTER, first=SPREAD.start))
    train(SPREAD, called, optimizer, stream[:BEFORE][place.rank :: place.world])
    save(place, "spread", called, optimizer, late)
    train(SPREAD, called, optimizer, stream[BEFORE:][place.rank :: place.world])
    return held(late)


def gathered(place: Place) -> dict:
    """The members of four ranks resumed on fewer."""
    called, optimizer, late = attach(SPREAD, place, "spread" if place.world > 1 else "alone")
    load(place, "spread", called, optimizer, late)
    stream = list(SPREAD.batches(AFTER, first=SPREAD.start))
    train(SPREAD, called, optimizer, stream[BEFORE:][place.rank :: place.world])
    return {**held(late), "turn": late.turn, "rounds": late.rounds}


def refusals(place: Place) -> dict[str, str]:
    """States that cannot be resumed here."""
    _, _, late = attach(SPREAD, place, "spread")
    late.start()
    state = late.state_dict()
    found = {}
    attempts = {
        "world": lambda: late.load_state_dict({**state, "turn": 1, "ranks": 2}),
        "key": lambda: dcp.load(
            {"phase": PhaseState(late, place.folder / "spread", key="phase")},
            checkpoint_id=place.folder / "spread",
            process_group=place.group,
        ),
        "members": lambda: dcp.load(
            {"late": PhaseState(alone(CASES[0], place)[2], place.folder / "spread")},
            checkpoint_id=place.folder / "spread",
            process_group=place.group,
        ),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
            found[name] = "accepted"
        except latephase.LatePhaseValueError as error:
            found[name] = str(error)
    return found


RESUMED = [
    (index, how, then, world)
    for index, how, targets in (
        (0, "sharded", ("sharded 4", "sharded 2", "alone 1")),
        (1, "sharded", ("sharded 2", "alone 1")),
        (2, "sharded", ("alone 1",)),
        (0, "replicated", ("replicated 4", "replicated 2", "sharded 2", "alone 1")),
    )
    for then, world in ((target.split()[0], int(target.split()[1])) for target in targets)
]


def scenarios() -> dict[str, tuple[int, Callable[[Place], object]]]:
    """By name: on how many ranks, and what; first what saves."""
    table: dict[str, tuple[int, Callable[[Place], object]]] = {"spread": (4, spread)}
    for index, how in dict.fromkeys((index, how) for index, how, _, _ in RESUMED):
        table[f"saved {index} {how}"] = 4, lambda p, a=(index, how): saved(p, *a)
    for index, how, then, world in RESUMED:
        table[f"loaded {index} {how} {then} {world}"] = world, lambda p, a=(index, how, then): resumed(p, *a)
    for world in (2, 1):
        table[f"gathered {world}"] = world, gathered
    table["refusals of a state"] = 4, refusals
    return table
