"""The user's own optimizer: its states, groups, counters and schedules stay right, and some are refused."""

import copy
from dataclasses import replace

import pytest
import torch

import latephase
from cases import OPTIMIZERS, Case, assert_matches, assert_same, run, run_reference, train
from latephase.reference import Reference

TURNS = 7


@pytest.mark.parametrize("state", ["copy", "reset"])
@pytest.mark.parametrize("name", ["nesterov", "adam", "adamw", "rmsprop"])
def test_members_begin_with_a_copy_of_the_optimizer_state_or_none(name: str, state: str) -> None:
    case = Case(optimizer=name)
    _, _, late = run(case, TURNS, optimizer_state=state)
    assert_matches(late, run_reference(case, TURNS, optimizer_state=state), 1e-12)
    other = "reset" if state == "copy" else "copy"
    with pytest.raises(AssertionError):
        assert_matches(late, run_reference(case, TURNS, optimizer_state=other), 1e-12)


@pytest.mark.parametrize("name", ["nesterov", "adam", "rmsprop"])
def test_each_members_optimizer_state_is_its_own(name: str) -> None:
    """At a turn `optimizer.state` holds that member's, and the base weights' is in step with the rounds."""
    case = Case(optimizer=name)
    model, optimizer, late = run(case, 6)
    judge = run_reference(case, 6)
    assert late.turn == 0
    for theirs in (judge._late_optimizers[0][0], judge._base_optimizers[0]):
        twins = {id(p): p for group in theirs.param_groups for p in group["params"]}
        for parameter_name, parameter in model.named_parameters():
            for holder in (judge.members[0], judge.model):
                twin = holder.get_parameter(parameter_name)
                if id(twin) in twins:
                    ours = {k: torch.as_tensor(v) for k, v in optimizer.state[parameter].items() if v is not None}
                    expected = {k: torch.as_tensor(v) for k, v in theirs.state[twin].items() if v is not None}
                    assert_same(ours, expected, 1e-12, parameter_name)


class CountsInGroup(torch.optim.Optimizer):
    """Adam's bias correction from a counter in the group, as in timm's Lamb; it counts in every step()."""

    def __init__(self, params, lr: float = 1e-2, step: float | torch.Tensor = 0) -> None:
        super().__init__(params, {"lr": lr, "step": step})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    m.lerp_(p.grad, 0.1)
                    p.sub_(m, alpha=group["lr"] / (1 - 0.9 ** group["step"]))


@pytest.mark.parametrize("kind", [int, torch.tensor])
@pytest.mark.parametrize("start", [0, 3])
def test_counters_in_the_groups_count_rounds(start: int, kind) -> None:
    """Numbers, and tensors that count up in place, as timm's Lamb has them now."""
    case = Case(start=start)
    model, theirs = case.plain(), case.plain()
    optimizer = CountsInGroup(model.parameters(), step=kind(0.0))
    late = latephase.LatePhase(model, members=3)
    late.optimizer(optimizer)
    judge = Reference(theirs, CountsInGroup(theirs.parameters(), step=kind(0.0)), case.late_names(), 3)
    for index, batch in enumerate(case.batches(start + TURNS)):
        if index == start:
            late.start()
            judge.start()
        train(case, model, optimizer, [batch])
        judge.step(case.loss(batch))
    assert_matches(late, judge, 1e-12)


class CallsParent(torch.optim.SGD):
    """torch runs the step hooks of an optimizer that calls its parent's step() once for each of the two."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("with_closure", [False, True])
def test_an_optimizer_that_calls_its_parents_step(with_closure: bool) -> None:
    case = Case(optimizer="sgd")
    model = case.plain()
    torch.optim.SGD(model.parameters(), lr=0.1)  # makes torch install the hooks on the parent's step as well
    optimizer = CallsParent(model.parameters(), lr=0.1)
    late = latephase.LatePhase(model, members=3)
    late.optimizer(optimizer)
    train(case, model, optimizer, case.batches(case.start))
    late.start()
    for batch in case.batches(TURNS, first=case.start):
        optimizer.zero_grad()

        def closure(batch=batch):
            loss = case.loss(batch)(model)
            loss.backward()
            return loss

        if with_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    assert_matches(late, run_reference(case, TURNS), 1e-12)


def test_groups_with_rates_of_their_own() -> None:
    case = Case(start=2)
    rates = {"lr": 0.1, "weight_decay": 1e-2, "late_lr": 0.02, "late_weight_decay": 0.3}
    model = case.plain()
    late = latephase.LatePhase(model, members=3)
    groups = late.parameter_groups(**rates)
    assert [len(g["params"]) for g in groups] == [len(late.base_parameters()), len(late.late_parameters())]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    late.optimizer(optimizer)
    theirs, names = case.plain(), case.late_names()
    by_name = dict(theirs.named_parameters())
    clock = torch.optim.SGD(
        [
            {"params": [p for n, p in by_name.items() if n not in names], "lr": 0.1, "weight_decay": 1e-2},
            {"params": [p for n, p in by_name.items() if n in names], "lr": 0.02, "weight_decay": 0.3},
        ],
        momentum=0.9,
    )
    judge = Reference(theirs, clock, names, 3)
    for index, batch in enumerate(case.batches(2 + TURNS)):
        if index == 2:
            late.start()
            judge.start()
        train(case, model, optimizer, [batch])
        judge.step(case.loss(batch))
    assert_matches(late, judge, 1e-12)
    same = latephase.LatePhase(case.plain()).parameter_groups(lr=0.1, weight_decay=0.2)
    assert [(g["lr"], g["weight_decay"]) for g in same] == [(0.1, 0.2)] * 2


class Sharpness(torch.optim.SGD):
    """Evaluates its closure twice, as SAM does."""

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
            closure()
        return super().step()


def test_an_optimizer_that_evaluates_its_closure_twice_is_refused() -> None:
    case = Case()
    model = case.plain()
    optimizer = Sharpness(model.parameters(), lr=0.1)
    late = latephase.LatePhase(model, members=3)
    late.optimizer(optimizer)
    late.start()
    (batch,) = case.batches(1)

    def closure():
        optimizer.zero_grad()
        loss = case.loss(batch)(model)
        loss.backward()
        return loss

    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(latephase.LatePhaseError, match="closure"):
        optimizer.step(closure)
    assert late.turn == 0
    assert_same({n: p.detach() for n, p in model.named_parameters()}, before)


def test_lbfgs_is_refused_by_name() -> None:
    model = Case().plain()
    optimizer = torch.optim.LBFGS(model.parameters())
    late = latephase.LatePhase(model)
    with pytest.raises(latephase.LatePhaseError, match="LBFGS"):
        late.optimizer(optimizer)
    late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))  # the refusal left nothing behind


def test_an_optimizer_that_is_spread_over_ranks_is_refused_by_name() -> None:
    class ZeroRedundancyOptimizer(torch.optim.SGD):
        """Torch's own needs ranks; it is known by its name, since not every torch has it."""

    model = Case().plain()
    late = latephase.LatePhase(model)
    with pytest.raises(latephase.LatePhaseValueError, match=r"ZeroRedundancyOptimizer .*plain optimizer"):
        late.optimizer(ZeroRedundancyOptimizer(model.parameters(), lr=0.1))


def test_the_same_optimizer_comes_back_and_its_options_stay() -> None:
    case = Case()
    model = case.plain()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    options = [{k: v for k, v in g.items() if k != "params"} for g in copy.deepcopy(optimizer.param_groups)]
    late = latephase.LatePhase(model, members=2)
    assert late.optimizer(optimizer) is optimizer
    late.start()
    train(case, model, optimizer, case.batches(4))
    late.collapse()
    assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == options


def test_schedulers_run_as_ever() -> None:
    """A schedule of rates and momenta, per minibatch: its course is that of plain training, and the reference's."""
    case = Case(start=2)

    def schedule(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)

    model, optimizer, late = case.attach()
    _, clock, judge = case.reference()
    schedulers = schedule(optimizer), schedule(clock)
    for index, batch in enumerate(case.batches(2 + TURNS)):
        if index == 2:
            late.start()
            judge.start()
        train(case, model, optimizer, [batch])
        judge.step(case.loss(batch))
        for scheduler in schedulers:
            scheduler.step()
        assert schedulers[0].get_last_lr() == schedulers[1].get_last_lr()
        assert optimizer.param_groups[0]["momentum"] == clock.param_groups[0]["momentum"]
    assert schedulers[0].last_epoch == 2 + TURNS
    assert_matches(late, judge, 1e-12)


def test_a_wrapper_of_an_optimizer_is_taken_for_what_it_wraps() -> None:
    class Wrapper:
        """As LightningOptimizer and AcceleratedOptimizer are."""

        def __init__(self, optimizer) -> None:
            self.optimizer = optimizer

        def step(self) -> None:
            self.optimizer.step()

    case = Case()
    model = case.plain()
    wrapped = Wrapper(OPTIMIZERS["nesterov"](model.parameters()))
    late = latephase.LatePhase(model, members=3)
    assert late.optimizer(wrapped) is wrapped
    assert late.optimizer(wrapped.optimizer) is wrapped.optimizer  # the same one: no second set of hooks
    late.start()
    for batch in case.batches(TURNS):
        wrapped.optimizer.zero_grad()
        case.loss(batch)(model).backward()
        wrapped.step()
    assert_matches(late, run_reference(replace(case, start=0), TURNS), 1e-12)
