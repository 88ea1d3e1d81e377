"""What each process does in the tests of data-parallel training; test_data_parallel.py compares it with one."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms import Join
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

import latephase
from cases import OPTIMIZERS, Case, train
from places import SIZE, TURNS, Place, held
from zoo import inputs

SAME = [
    Case(model="ln_mlp", optimizer="adamw", start=2),
    Case(model="bn_cnn", optimizer="nesterov", gamma="mean", start=2),
    Case(model="ln_mlp", family="rank-one", optimizer="sgd", start=2),
]
SPREAD = [
    Case(model="ln_mlp", optimizer="adamw", members=8, start=2),
    Case(model="bn_cnn", optimizer="nesterov", gamma="mean", members=4, start=2),
    Case(model="ln_mlp", family="rank-one", optimizer="sgd", members=4, start=0),
]
ROUNDS = 3
SAMPLES = 10  # that four ranks do not share evenly


def attach(case: Case, place: Place, **options):
    """The phase, and DistributedDataParallel around its model."""
    model = case.plain()
    late = latephase.LatePhase(
        model, case.members, case.weights(), base_gradient=case.gamma, process_group=place.group, **options
    )
    called = DistributedDataParallel(model, process_group=place.group)
    optimizer = late.optimizer(OPTIMIZERS[case.optimizer](called.parameters()))
    return called, optimizer, late


def same_member(place: Place, index: int) -> dict:
    """All ranks train the member of the turn, each on its share of the minibatch."""
    case = SAME[index]
    called, optimizer, late = attach(case, place)
    for number, batch in enumerate(case.batches(case.start + TURNS, size=SIZE)):
        if number == case.start:
            late.start()
        train(case, called, optimizer, [place.share(batch)])
    return held(late)


def over_ranks(place: Place, index: int) -> dict:
    """Rank r takes minibatch, and member, turn * world + r."""
    case = SPREAD[index]
    model = case.plain()
    late = latephase.LatePhase(
        model,
        case.members,
        case.weights(),
        base_gradient=case.gamma,
        members_over_ranks=True,
        process_group=place.group,
    )
    optimizer = late.optimizer(OPTIMIZERS[case.optimizer](model.parameters()))
    train(case, model, optimizer, case.batches(case.start))
    late.start()
    stream = list(case.batches(ROUNDS * case.members, first=case.start))
    train(case, model, optimizer, stream[place.rank :: place.world])
    return held(late)


def padded(place: Place) -> dict:
    """A data set that does not divide by the ranks: DistributedSampler repeats its first samples."""
    case = Case(model="ln_mlp", optimizer="nesterov", start=0)
    called, optimizer, late = attach(case, place)
    late.start()
    x, y = inputs(case.model, SAMPLES, case.dtype, seed=7)
    for index in DistributedSampler(range(SAMPLES), place.world, place.rank, shuffle=False):
        train(case, called, optimizer, [(x[index : index + 1], y[index : index + 1])])
    return held(late)


def joined(place: Place) -> str:
    """Ranks with more and with fewer minibatches, under Join."""
    case = SAME[0]
    called, optimizer, late = attach(case, place)
    late.start()
    try:
        with Join([called]):
            train(case, called, optimizer, map(place.share, case.batches(2 + place.rank, size=SIZE)))
    except latephase.LatePhaseError as error:
        return str(error)
    return "accepted"


class Synchronised(nn.BatchNorm2d):
    """What SyncBatchNorm does on accelerators; it refuses to train on a CPU, as DDP refuses to wrap it there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        axes, shape = [0, *range(2, x.ndim)], (1, -1, *(1 for _ in range(2, x.ndim)))
        count = x.numel() // x.shape[1] * dist.get_world_size(self.process_group)
        sums = all_reduce(torch.stack([x.sum(axes), x.square().sum(axes)]), group=self.process_group)
        mean = sums[0] / count
        var = sums[1] / count - mean.square()
        with torch.no_grad():
            self.num_batches_tracked += 1
            rate = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(var * count / (count - 1), rate)
        y = (x - mean.view(shape)) / (var.view(shape) + self.eps).sqrt()
        return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)


def synchronised(place: Place) -> dict:
    """SyncBatchNorm in the places of BatchNorm, before the attachment: the statistics are those of all shares."""
    case = SAME[1]
    model = nn.SyncBatchNorm.convert_sync_batchnorm(case.plain(), place.group)
    late = latephase.LatePhase(model, case.members, case.weights(), base_gradient=case.gamma, process_group=place.group)
    kinds = [type(module) for module in model.modules()].count(nn.SyncBatchNorm)
    for module in model.modules():
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = Synchronised
    called = DistributedDataParallel(model, process_group=place.group)
    optimizer = late.optimizer(OPTIMIZERS[case.optimizer](called.parameters()))
    for number, batch in enumerate(case.batches(case.start + TURNS, size=SIZE)):
        if number == case.start:
            late.start()
        train(case, called, optimizer, [place.share(batch)])
    found = held(late)
    x, _ = inputs(case.model, SIZE, case.dtype, seed=99)
    late.collapse(check=x)
    with torch.no_grad():
        return {**found, "layers": kinds, "output": model.eval()(x)}


def uneven_members(place: Place) -> str:
    try:
        latephase.LatePhase(SPREAD[0].plain(), 6, members_over_ranks=True, process_group=place.group)
    except latephase.LatePhaseValueError as error:
        return str(error)
    return "accepted"


def scenarios() -> dict[str, tuple[int, Callable[[Place], object]]]:
    """By name: on how many ranks, and what."""
    table: dict[str, tuple[int, Callable[[Place], object]]] = {
        "padded": (4, padded),
        "joined": (4, joined),
        "synchronised": (4, synchronised),
        "uneven members": (4, uneven_members),
    }
    for index in range(len(SAME)):
        table[f"ddp {index}"] = 4, lambda p, i=index: same_member(p, i)
    for index in range(len(SPREAD)):
        table[f"over ranks {index}"] = 4, lambda p, i=index: over_ranks(p, i)
    return table
