"""What each process does in the tests of FSDP2; test_sharded.py compares it with one process."""

import copy
import io
from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

import latephase
from cases import OPTIMIZERS, Case, tensors, train
from places import SIZE, TURNS, Place, held, whole
from zoo import inputs

SHARDED = [
    Case(model="ln_mlp", optimizer="nesterov", start=2),
    Case(model="ln_mlp", family="full", optimizer="adamw", gamma="mean", start=0),
    Case(model="bn_cnn", family="norm+head", optimizer="nesterov", start=2),
    Case(model="transformer", family="parameters", optimizer="adam", start=2),
    Case(model="bn_cnn", family="parameters", optimizer="sgd", start=0),
    Case(model="gn_cnn", family="head", optimizer="rmsprop", gamma=0.3, start=2),
]


def shard(model: nn.Module, place: Place) -> nn.Module:
    """Half of the layers in groups of their own, the rest in the root's."""
    layers = [layer for layer in model.children() if list(layer.parameters())]
    for layer in layers[: len(layers) // 2]:
        fully_shard(layer, mesh=place.mesh)
    return fully_shard(model, mesh=place.mesh)


def attach(case: Case, place: Place, order: str = "after", **options):
    """A sharded model, its optimizer and the phase, attached before or after the sharding."""
    model = case.plain()
    if order == "after":
        shard(model, place)
    late = latephase.LatePhase(
        model, case.members, case.weights(), base_gradient=case.gamma, process_group=place.group, **options
    )
    if order == "before":
        shard(model, place)
    optimizer = late.optimizer(OPTIMIZERS[case.optimizer](model.parameters()))
    return model, optimizer, late


def sharded(place: Place, index: int, order: str) -> dict:
    """FSDP2: all ranks train the member of the turn, each on its share of the minibatch."""
    case = SHARDED[index]
    model, optimizer, late = attach(case, place, order)
    for number, batch in enumerate(case.batches(case.start + TURNS, size=SIZE)):
        if number == case.start:
            late.start()
        train(case, model, optimizer, [place.share(batch)])
    return held(late)


def evaluated_between(place: Place) -> dict:
    """A forward pass in eval mode after every step, which FSDP2 leaves whole weights behind."""
    case = SHARDED[0]
    model, optimizer, late = attach(case, place)
    late.start()
    x, _ = inputs(case.model, SIZE, case.dtype, seed=99)
    for batch in case.batches(TURNS, size=SIZE):
        train(case, model, optimizer, [place.share(batch)])
        with torch.no_grad():
            averaged = model.eval()(x)
            model.train()
            of_turn = model(x)
    return {**held(late), "output.average": averaged, "output.turn": of_turn, "output.members": late.predict(x)}


def accumulated(place: Place, clip: bool) -> dict:
    """Two backwards to a step, the first without FSDP2's sum over ranks; clipped or not."""
    case = SHARDED[0]
    model, optimizer, late = attach(case, place)
    late.start()
    for batch in case.batches(TURNS, size=SIZE):
        first, second = (place.share(half) for half in zip(*(tensor.chunk(2) for tensor in batch), strict=True))
        optimizer.zero_grad()
        model.set_requires_gradient_sync(False)
        (case.loss(first)(model) / 2).backward()
        model.set_requires_gradient_sync(True)
        (case.loss(second)(model) / 2).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    return held(late)


def facts(place: Place) -> dict:
    """What else there is to know about a life under FSDP2."""
    case = SHARDED[2]
    model, optimizer, late = attach(case, place)
    late.start()
    train(case, model, optimizer, [place.share(batch) for batch in case.batches(4, size=SIZE)])
    state = late.state_dict()
    parked = sum(part.to_local().numel() for part in state["values"].values() if isinstance(part, DTensor))
    entire = sum(part.numel() for part in state["values"].values() if isinstance(part, DTensor))
    found = {"parked": parked, "entire": entire, "keys": list(model.state_dict()) == list(case.plain().state_dict())}
    with CommDebugMode() as communication:
        model.eval()
        average = late.averaged_state_dict()
        model.train()
        with late.member(1):
            pass
        model.eval()
    found["communication of an average"] = communication.get_total_counts()
    there = whole(tensors(model))
    found["eval"] = all(torch.equal(there[name], value) for name, value in whole(average).items())
    found["sharded keys"] = sorted(n for n, t in average.items() if isinstance(t, DTensor))
    try:
        copy.deepcopy(model)
        found["deepcopy"] = "works"
    except AssertionError as error:
        found["deepcopy"] = str(error)
    x, _ = inputs(case.model, SIZE, case.dtype, seed=99)
    before = model(x).detach()
    found["collapsed"] = late.collapse(check=x) is model
    found["output"] = (model.eval()(x) - before).abs().max().item()
    found["plain"] = whole(dict(model.state_dict()))
    model.train()
    train(case, model, optimizer, [place.share(batch) for batch in case.batches(1, size=SIZE)])
    found["trains on"] = not torch.equal(whole({"": model.fc.weight})[""], found["plain"]["fc.weight"])
    return found


def noisy(place: Place, model: str) -> dict:
    """The members at the start, and those of the same model that is not sharded."""
    case = Case(model=model, family="full", start=0)
    _, _, late = attach(case, place, noise=0.3, seed=5)
    late.start()
    plain = case.plain()
    alone = latephase.LatePhase(plain, case.members, case.weights(), noise=0.3, seed=5, process_group=place.group)
    alone.start()
    return {"sharded": held(late), "plain": held(alone)}


def resumed(place: Place, index: int, stop: int) -> dict:
    """Saved to a file after `stop` minibatches, and resumed from it in new objects."""
    case = SHARDED[index]
    model, optimizer, late = attach(case, place)
    batches = [place.share(batch) for batch in case.batches(case.start + TURNS, size=SIZE)]
    train(case, model, optimizer, batches[: case.start])
    late.start()
    train(case, model, optimizer, batches[case.start : case.start + stop])
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), late.state_dict()), file)
    file.seek(0)
    model, optimizer, late = attach(case, place, "before")
    of_model, of_optimizer, of_late = torch.load(file, weights_only=True)
    late.load_state_dict(of_late)
    model.load_state_dict(of_model)
    optimizer.load_state_dict(of_optimizer)
    train(case, model, optimizer, batches[case.start + stop :])
    return {**held(late), "turn": late.turn, "rounds": late.rounds}


def refusal(place: Place, what: str) -> str:
    """The message with which a bad set-up is refused, on every rank."""
    case = SHARDED[0]
    model = case.plain()
    sgd = OPTIMIZERS["sgd"]
    try:
        if what == "factors after sharding":
            latephase.LatePhase(shard(model, place), 2, "rank-one")
        elif what == "factors before sharding":
            late = latephase.LatePhase(model, 2, "lora")
            shard(model, place)
            late.optimizer(sgd(model.parameters()))
        elif what == "over ranks after sharding":
            latephase.LatePhase(shard(model, place), 4, members_over_ranks=True, process_group=place.group)
        elif what == "over ranks before sharding":
            late = latephase.LatePhase(model, 4, members_over_ranks=True, process_group=place.group)
            shard(model, place)
            late.optimizer(sgd(model.parameters()))
        elif what == "in place":
            latephase.LatePhase(shard(model, place), 2, accumulate="in_place")
        elif what == "sharded after optimizer()":
            late = latephase.LatePhase(model, 2, process_group=place.group)
            late.optimizer(sgd(model.parameters()))
            shard(model, place)
            late.start()
        elif what == "sharded after start()":
            late = latephase.LatePhase(model, 2, process_group=place.group)
            late.optimizer(sgd(model.parameters()))
            late.start()
            shard(model, place)
            late.optimizer(sgd(model.parameters()))
        elif what == "one pass":
            late = latephase.LatePhase(shard(model, place), 2, process_group=place.group)
            late.optimizer(sgd(model.parameters()))
            late.start()
            late.parallel(inputs(case.model, SIZE, case.dtype, seed=0)[0])
    except latephase.LatePhaseError as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


REFUSALS = {
    "factors after sharding": "Parameters('*lora_*')",
    "factors before sharding": "Parameters('*lora_*')",
    "over ranks after sharding": "leave members_over_ranks out",
    "over ranks before sharding": "leave members_over_ranks out",
    "in place": "accumulate='copy'",
    "sharded after optimizer()": "shard the model first",
    "sharded after start()": "shard the model first",
    "one pass": "train the members in turn",
}


def scenarios() -> dict[str, tuple[int, Callable[[Place], object]]]:
    """By name: on how many ranks, and what."""
    table: dict[str, tuple[int, Callable[[Place], object]]] = {}
    for index, world, order in ((0, 4, "after"), (2, 4, "before"), *((i, 2, "before") for i in range(1, 6))):
        table[f"sharded {index} {world} {order}"] = world, lambda p, a=(index, order): sharded(p, *a)
    table["sharded 2 2 after"] = 2, lambda p: sharded(p, 2, "after")
    table["evaluated between"] = 2, evaluated_between
    for clip in (False, True):
        table[f"accumulated {clip}"] = 2, lambda p, c=clip: accumulated(p, c)
    table["facts"] = 4, facts
    for model in ("ln_mlp", "bn_cnn"):
        table[f"noisy {model}"] = 2, lambda p, m=model: noisy(p, m)
    for index in (1, 2):
        for stop in (2, 4):
            table[f"resumed {index} {stop}"] = 2, lambda p, a=(index, stop): resumed(p, *a)
    for what in REFUSALS:
        table[what] = 2, lambda p, w=what: refusal(p, w)
    return table
