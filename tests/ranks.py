"""What each of two processes does in the distributed tests; test_distributed.py compares it with one process."""

import datetime
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import latephase
from cases import FACTORED, OPTIMIZERS, Case, tensors, train

WORLD, TURNS = 2, 7
SAME = [
    Case(model="ln_mlp", optimizer="nesterov", start=2),
    Case(model="ln_mlp", family="full", optimizer="adamw", gamma="mean", start=0),
    Case(model="ln_mlp", family="rank-one", optimizer="sgd", start=2),
    Case(model="bn_cnn", family="norm+head", optimizer="nesterov", start=2),
    Case(model="ln_mlp", family="hypernetwork", optimizer="nesterov", start=2),
    Case(model="lstm", family="rank-one", optimizer="sgd", start=2),
    Case(model="tied", family="lora", optimizer="sgd", start=2),
]
SPREAD = [
    Case(model="ln_mlp", optimizer="adamw", members=4, start=2),
    Case(model="bn_cnn", optimizer="nesterov", gamma="mean", members=4, start=2),
    Case(model="bn_cnn", family="rank-one", optimizer="sgd", members=4, start=0),
    Case(model="ln_mlp", family="full", optimizer="rmsprop", gamma=0.3, members=2, start=2),
    Case(model="tied", family="norm", optimizer="adam", members=6, start=2),
    Case(model="bn_cnn", family="hypernetwork", optimizer="sgd", members=4, start=0),
    Case(model="decoder", family="lora-frozen", optimizer="sgd", members=4, start=2),
]


def half(batch, rank: int):
    """A rank's part of a minibatch of 8 samples."""
    return tuple(t[4 * rank : 4 * rank + 4] for t in batch)


def held(late: latephase.LatePhase) -> dict[str, torch.Tensor]:
    """Every member and the average, as this rank has them."""
    found = {f"average.{name}": tensor for name, tensor in late.averaged_state_dict().items()}
    if late.phase == "late":
        for k in range(late.members):
            with late.member(k):
                found |= {f"{k}.{name}": tensor for name, tensor in tensors(late.model).items()}
    return found


def attach(case: Case, wrap: str | None, order: str = "inside", **options):
    """The model, what the loop calls, its optimizer and the phase; DDP goes on before or after the attachment."""
    model = case.plain()
    called = model
    if wrap is not None and order == "outside":
        called = DistributedDataParallel(model, gradient_as_bucket_view=wrap == "views")
    late = latephase.LatePhase(called, case.members, case.weights(), base_gradient=case.gamma, **options)
    if wrap is not None and order == "inside":
        called = DistributedDataParallel(model, gradient_as_bucket_view=wrap == "views")
    optimizer = late.optimizer(OPTIMIZERS[case.optimizer](called.parameters()))
    return model, called, optimizer, late


def same_member(rank: int, index: int, wrap: str, order: str) -> dict:
    """Plain DDP: all ranks train the member of the turn, each on its half of the minibatch."""
    case = SAME[index]
    _, called, optimizer, late = attach(case, wrap, order)
    for number, batch in enumerate(case.batches(case.start + TURNS, size=8)):
        if number == case.start:
            late.start()
        train(case, called, optimizer, [half(batch, rank)])
    return held(late)


def accumulated_without_sync(rank: int) -> dict:
    """Gradient accumulation under no_sync: two backwards to a step, the first one local."""
    case = SAME[0]
    _, called, optimizer, late = attach(case, "views")
    late.start()
    for batch in case.batches(TURNS, size=8):
        x, y = half(batch, rank)
        optimizer.zero_grad()
        with called.no_sync():
            (F.cross_entropy(called(x[:2]), y[:2]) / 2).backward()
        (F.cross_entropy(called(x[2:]), y[2:]) / 2).backward()
        optimizer.step()
    return held(late)


def over_ranks(rank: int, index: int, wrap: str | None, turns: int, stop: int | None = None) -> dict:
    """Members over ranks: rank r takes minibatch (and member) turn * world + r. `stop`: save there, resume anew."""
    case = SPREAD[index]
    _, called, optimizer, late = attach(case, wrap, "outside", members_over_ranks=True)
    train(case, called, optimizer, case.batches(case.start))
    late.start()
    stream = list(case.batches(WORLD * turns, first=case.start))[rank::WORLD]
    if stop is not None:
        train(case, called, optimizer, stream[:stop])
        saved = late.model.state_dict(), optimizer.state_dict(), late.state_dict()
        _, called, optimizer, late = attach(replace(case), wrap, "outside", members_over_ranks=True)
        for target, state in zip((late.model, optimizer, late), saved, strict=True):
            target.load_state_dict(state)
        stream = stream[stop:]
    train(case, called, optimizer, stream)
    return {**held(late), "turn": late.turn, "rounds": late.rounds}


def modes(rank: int) -> dict:
    """eval() of the wrapper is the average; its state dict too; collapse returns the wrapper."""
    case = SAME[0]
    model, called, optimizer, late = attach(case, "plain", "outside")
    late.start()
    train(case, called, optimizer, [half(batch, rank) for batch in case.batches(4, size=8)])
    average = late.averaged_state_dict()
    turn = tensors(model)
    called.eval()
    facts = {"eval": all(torch.equal(t, average[n]) for n, t in tensors(model).items())}
    called.train()
    facts["train"] = all(torch.equal(t, turn[n]) for n, t in tensors(model).items())
    facts["keys"] = list(called.state_dict()) == [f"module.{name}" for name in average]
    facts["values"] = all(torch.equal(called.state_dict()[f"module.{name}"], average[name]) for name in average)
    facts["names"] = set(late.late_names()) == case.late_names()
    facts["collapse"] = late.collapse() is called
    return facts


def one_pass(rank: int) -> dict:
    """parallel_module() in DDP: every rank has its half of each member's minibatch."""
    case = Case(model="ln_mlp", optimizer="nesterov", start=0)
    _, _, optimizer, late = attach(case, None)
    late.start()
    called = DistributedDataParallel(late.parallel_module())
    batches = [half(batch, rank) for batch in case.batches(6, size=8)]
    for round_ in (batches[:3], batches[3:]):
        optimizer.zero_grad()
        outputs = called(torch.cat([x for x, _ in round_]))
        F.cross_entropy(outputs, torch.cat([y for _, y in round_])).backward()
        optimizer.step()
    return held(late)


def statistics(rank: int, uneven: bool) -> dict:
    """Pooled over ranks: rank 1 has fewer batches, or as many, all of other sizes."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    torch.manual_seed(0)
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(4, 3))
        model[0].bias.zero_()
    data = torch.randn(23, 3, dtype=torch.float64)
    mine = [data[:7], data[7:9]] if rank == 0 else ([data[9:23]] if uneven else [data[9:22], data[22:]])
    latephase.recompute_statistics(model, mine, process_group=dist.group.WORLD)
    h = model[0](data).detach()
    return {"mean": model[1].running_mean - h.mean(0), "var": model[1].running_var - h.var(0)}


def refusal(rank: int, what: str) -> str:
    """The message with which a bad set-up is refused, on every rank."""
    model = Case(model="ln_mlp").plain()
    try:
        if what == "different models":
            with torch.no_grad():
                model[6].weight[0, 0] += rank * 1e-9
            latephase.LatePhase(model, members=2).start()
        elif what == "different seeds":
            latephase.LatePhase(model, members=2, noise=0.1, seed=rank).start()
        elif what == "uneven members":
            latephase.LatePhase(model, members=3, members_over_ranks=True)
        elif what == "in place":
            late = latephase.LatePhase(DistributedDataParallel(model), members=2, accumulate="in_place")
            late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
            late.start()
        elif what == "synchronised gradients":
            late = latephase.LatePhase(model, members=2, members_over_ranks=True)
            late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
            late.start()
            DistributedDataParallel(model)(torch.zeros(2, 5, dtype=torch.float64))
        elif what == "factors after wrapping":
            latephase.LatePhase(DistributedDataParallel(model), members=2, weights=["rank-one"])
    except latephase.LatePhaseError as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


REFUSALS = [
    "different models",
    "different seeds",
    "uneven members",
    "in place",
    "synchronised gradients",
    "factors after wrapping",
]


def scenarios() -> dict[str, Callable[[int], object]]:
    table: dict[str, Callable[[int], object]] = {"modes": modes, "one pass": one_pass}
    for index in range(len(SAME)):
        for wrap in ("plain", "views"):
            for order in ("inside",) if SAME[index].family in FACTORED else ("inside", "outside"):
                table[f"same {index} {wrap} {order}"] = lambda r, a=(index, wrap, order): same_member(r, *a)
    for index, case in enumerate(SPREAD):
        turns = 5 * case.members // WORLD
        for wrap in (None, "plain", "views"):
            table[f"spread {index} {wrap}"] = lambda r, a=(index, wrap, turns): over_ranks(r, *a)
        table[f"resumed {index}"] = lambda r, a=(index, None, turns, turns - 2): over_ranks(r, *a)
    for uneven in (False, True):
        table[f"statistics {uneven}"] = lambda r, u=uneven: statistics(r, u)
    for what in REFUSALS:
        table[what] = lambda r, w=what: refusal(r, w)
    table["no_sync"] = accumulated_without_sync
    return table


def work(rank: int, folder: str) -> None:
    """Runs every scenario, and writes down what came of each."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    outcomes = {}
    for name, scenario in scenarios().items():
        try:
            outcomes[name] = scenario(rank)
        except Exception:  # the test that asks for it shows it
            outcomes[name] = traceback.format_exc()
        torch.save(outcomes, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
