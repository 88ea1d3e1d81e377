"""What stands beside late-phase weights in ordinary loops.

torch.optim.swa_utils, schedule-free optimizers, schedules of every kind, torch.compile's modes, several adapters.
"""

import shutil

import pytest
import torch
import torch.nn.functional as F
from schedulefree import AdamWScheduleFree, SGDScheduleFree
from torch import nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LinearLR,
    MultiStepLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

import latephase
from cases import OPTIMIZERS, Case, assert_matches, assert_same, tensors, train
from latephase.reference import Reference
from zoo import bn_cnn

TURNS = 9


@pytest.mark.parametrize("make", [SGDScheduleFree, AdamWScheduleFree])
@pytest.mark.parametrize("gamma", ["sum", "mean"])
def test_schedule_free_trains_like_the_reference(make, gamma: str) -> None:
    """It counts steps in its groups, and keeps its second sequence in the state, one for each member."""
    case = Case(model="ln_mlp", start=2, gamma=gamma)
    model, theirs = case.plain(), case.plain()
    optimizer, clock = make(model.parameters(), lr=0.05), make(theirs.parameters(), lr=0.05)
    optimizer.train()
    clock.train()
    late = latephase.LatePhase(model, members=3, base_gradient=gamma)
    late.optimizer(optimizer)
    judge = Reference(theirs, clock, case.late_names(), 3, base_gradient=gamma)
    for index, batch in enumerate(case.batches(2 + TURNS)):
        if index == 2:
            late.start()
            judge.start()
        train(case, model, optimizer, [batch])
        judge.step(case.loss(batch))
    assert_matches(late, judge, 1e-12)

    # The model to use is x = y + (1 - 1 / beta) (z - y), of the averages as of each member: after the collapse.
    for each in (*judge._base_optimizers, *(one for row in judge._late_optimizers for one in row)):
        each.eval()
    expected = judge.average()
    late.collapse()
    optimizer.eval()
    assert_same(
        {n: p.detach() for n, p in model.named_parameters()},
        {n: p.detach() for n, p in expected.named_parameters()},
        1e-12,
    )


SCHEDULES = {
    "warm restarts": lambda o: CosineAnnealingWarmRestarts(o, T_0=4),
    "cyclic": lambda o: CyclicLR(o, 0.001, 0.1, step_size_up=3, cycle_momentum=True),
    "sequence": lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=3), ConstantLR(o, 0.5)], milestones=[3]),
    "epochs": lambda o: MultiStepLR(o, [1, 2], gamma=0.3),
    "plateau": lambda o: ReduceLROnPlateau(o, factor=0.5, patience=0),
    "swa": lambda o: SWALR(o, swa_lr=0.2, anneal_epochs=4),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_of_every_kind(name: str) -> None:
    """Per minibatch, per epoch of four minibatches, and on a plateau of the averaged model's loss."""
    case = Case(model="ln_mlp", optimizer="nesterov", start=2)
    model, optimizer, late = case.attach()
    _, clock, judge = case.reference()
    schedulers = SCHEDULES[name](optimizer), SCHEDULES[name](clock)
    (held_out,) = case.batches(1, first=90)
    seen = set()
    for index, batch in enumerate(case.batches(2 + TURNS)):
        if index == 2:
            late.start()
            judge.start()
        train(case, model, optimizer, [batch])
        judge.step(case.loss(batch))
        if name == "plateau":
            with torch.no_grad():
                losses = case.loss(held_out)(model.eval()), case.loss(held_out)(judge.average().eval())
            model.train()
            for scheduler, loss in zip(schedulers, losses, strict=True):
                scheduler.step(round(float(loss), 9))
        elif name != "epochs" or index % 4 == 3:
            for scheduler in schedulers:
                scheduler.step()
        seen.add(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[0]["lr"] == clock.param_groups[0]["lr"]
    assert len(seen) > 1
    assert_matches(late, judge, 1e-11)


@pytest.mark.parametrize("way", ["equal", "ema"])
@pytest.mark.parametrize("family", ["norm+head", "rank-one"])
def test_torchs_averaged_model_takes_the_average_inside_its_context(family: str, way: str) -> None:
    """AveragedModel reads parameters, not the state dict; pytorch/pytorch#65495: with the buffers."""
    case = Case(family=family, optimizer="nesterov")
    model, optimizer, late = case.attach()
    late.start()
    averaging = {"multi_avg_fn": get_ema_multi_avg_fn(0.7)} if way == "ema" else {}
    averaged = None
    expected: dict[str, torch.Tensor] = {}
    for count, batch in enumerate(case.batches(7)):
        train(case, model, optimizer, [batch])
        with late.average():
            if averaged is None:
                averaged = AveragedModel(model, use_buffers=True, **averaging)
            averaged.update_parameters(model)
        for name, value in late.averaged_state_dict().items():
            if not value.is_floating_point() or name not in expected:
                expected[name] = value
            elif way == "ema":
                expected[name] = 0.7 * expected[name] + 0.3 * value
            else:
                expected[name] = (expected[name] * count + value) / (count + 1)
    assert averaged is not None
    if family == "rank-one":
        # Averages factors, whose product is not the average of products: collapse each, or average state dicts.
        assert list(averaged.module.state_dict()) == list(expected)
        return
    ours = dict(averaged.module.state_dict())
    floats = [name for name, value in expected.items() if value.is_floating_point()]
    assert_same({n: ours[n] for n in floats}, {n: expected[n] for n in floats}, 1e-12)


class Images(nn.Module):
    """A model of dicts, as Hugging Face's are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = bn_cnn()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.net(pixel_values)


def test_statistics_of_dict_batches_under_autocast() -> None:
    """pytorch/pytorch#59363, #50945: what update_bn cannot do, and equal to it where it can."""
    torch.manual_seed(0)
    model, theirs = Images(), Images()
    theirs.load_state_dict(model.state_dict())
    data = [{"pixel_values": torch.randn(4, 2, 6, 6)} for _ in range(3)]
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever torch raises; when it does not, this note is void
        update_bn(data, theirs)
    latephase.recompute_statistics(model, data)
    update_bn([batch["pixel_values"] for batch in data], theirs.net)
    ours, others = {n: t.clone() for n, t in model.net.state_dict().items()}, theirs.net.state_dict()
    assert_same({"mean": ours["bn1.running_mean"]}, {"mean": others["bn1.running_mean"]}, 1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latephase.recompute_statistics(model, data)
    half = model.net.state_dict()
    assert half["bn1.running_mean"].dtype == torch.float32
    assert_same({"mean": half["bn1.running_mean"]}, {"mean": ours["bn1.running_mean"]}, 2e-2)
    assert not torch.equal(half["bn1.running_mean"], ours["bn1.running_mean"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch.*")
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compile_modes_compile_once_a_phase(mode: str | None) -> None:
    """Training before the start, every member, and evaluation: two graphs, whatever the mode.

    huggingface/pytorch-image-models#2693 ("_orig_mod."): the wrapper is attached, and names are the model's.
    """
    case = Case(model="ln_mlp", dtype=torch.float32, optimizer="adam")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    outcomes = []
    for compiled in (True, False):
        plain = case.plain()
        model = torch.compile(plain, mode=mode) if compiled else plain
        late = latephase.LatePhase(model, members=4)
        assert not any("_orig_mod" in name for name in late.late_names())
        optimizer = late.optimizer(OPTIMIZERS["adam"](model.parameters()))
        for index, (x, y) in enumerate(case.batches(14)):
            if index == 3:
                late.start()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if index % 5 == 4:
                with torch.no_grad():
                    model.eval()(x)
                model.train()
        assert late.collapse() is model
        outcomes.append(tensors(plain))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()
    assert_same(*outcomes, 1e-4)


def test_several_adapters_train_at_once_and_become_one() -> None:
    """K adapters of one frozen model, each with minibatches of its own, in one loop: huggingface/peft#631.

    huggingface/peft#1388: the model that they become differs from their average by rounding, and by how much is said.
    """
    case = Case(model="tied", family="lora", optimizer="adam")
    model = case.plain()
    weights = case.weights()
    late = latephase.LatePhase(model, members=4, weights=weights)
    for parameter in late.base_parameters():
        parameter.requires_grad = False
    optimizer = late.optimizer(torch.optim.Adam(late.late_parameters(), lr=0.02))
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    late.start()
    train(case, model, optimizer, case.batches(8))
    assert frozen
    assert_same({n: p.detach() for n, p in model.named_parameters() if n in frozen}, frozen)
    values = late.state_dict()["values"]
    assert all(not torch.equal(stack[0], stack[1]) for stack in values.values())
    (batch,) = case.batches(1, first=50)
    with torch.no_grad():
        before = model.eval()(batch[0])
        after = late.collapse(check=batch[0])(batch[0])
    assert (before - after).abs().max() <= 1e-12
