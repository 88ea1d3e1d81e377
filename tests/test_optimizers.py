"""The user's own optimizers: several of them, groups of their own, counters in groups, and those refused."""

import copy

import pytest
import torch
from torch import nn

import latephase
from cases import OPTIMIZERS, PAIRS, Case, assert_matches, assert_same, run, run_reference, tensors, train
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


def _parts(model: nn.Module):
    """Convolutions and matrices to one optimizer, vectors to another: each holds base and late weights."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return OPTIMIZERS["nesterov"](matrices), OPTIMIZERS["adam"](vectors)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("case", [c for c in PAIRS if c.family != "rank-one"][::4], ids=str)
def test_with_two_optimizers_a_turn_ends_when_each_has_stepped(case: Case, order) -> None:
    model = case.plain()
    optimizers = _parts(model)
    late = latephase.LatePhase(model, members=3, weights=case.weights(), base_gradient=case.gamma)
    for optimizer in optimizers:
        late.optimizer(optimizer)
    theirs = case.plain()
    judge = Reference(theirs, _parts(theirs), case.late_names(), 3, base_gradient=case.gamma)
    for index, batch in enumerate(case.batches(case.start + TURNS)):
        if index == case.start:
            late.start()
            judge.start()
        for optimizer in optimizers:
            optimizer.zero_grad()
        case.loss(batch)(model).backward()
        turn = late.turn
        optimizers[order[0]].step()
        assert late.turn == turn
        optimizers[order[1]].step()
        judge.step(case.loss(batch))
    assert_matches(late, judge, 1e-12)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_with_two_optimizers_one_may_have_no_gradients(order) -> None:
    """A branch that a minibatch does not take: its optimizer's step is empty, and counts as its step of the turn."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head, self.side = nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x, aside):
            return self.head(self.norm(x)) + (self.side(x) if aside else 0)

    def build():
        torch.manual_seed(0)
        model = Branch().double()
        late_and_base = OPTIMIZERS["adam"]([*model.norm.parameters(), *model.head.parameters()])
        return model, [late_and_base, OPTIMIZERS["sgd"](model.side.parameters())]

    model, optimizers = build()
    late = latephase.LatePhase(model, members=3, weights=["norm"])
    for optimizer in optimizers:
        late.optimizer(optimizer)
    theirs, clocks = build()
    judge = Reference(theirs, clocks, ["norm.weight", "norm.bias"], 3)
    late.start()
    judge.start()
    for index in range(TURNS):
        x = torch.randn(4, 4, dtype=torch.float64)

        def loss(net, x=x, aside=index % 2 == 0):
            return net(x, aside).square().mean()

        for optimizer in optimizers:
            optimizer.zero_grad()
        loss(model).backward()
        for which in order:
            optimizers[which].step()
        judge.step(loss)
    assert_matches(late, judge, 1e-12)


def test_a_second_step_before_the_other_optimizers_first_is_an_error() -> None:
    case = Case()
    model = case.plain()
    first, second = _parts(model)
    late = latephase.LatePhase(model, members=3)
    late.optimizer(first)
    late.optimizer(second)
    late.start()
    (batch,) = case.batches(1)
    case.loss(batch)(model).backward()
    first.step()
    before = tensors(model)
    case.loss(batch)(model).backward()
    before.update({n: b.clone() for n, b in model.named_buffers()})
    with pytest.raises(latephase.LatePhaseError, match="drives"):
        first.step()
    assert_same(tensors(model), before)
    second.step()
    assert late.turn == 1


def test_a_turn_does_not_wait_for_an_optimizer_that_does_not_drive() -> None:
    """An optimizer of base weights beside the one that drives: the turn ends with the latter's step."""
    case = Case(model="ln_mlp", family="norm", optimizer="sgd")
    model, theirs = case.plain(), case.plain()
    late = latephase.LatePhase(model, members=3, weights=["norm"])
    judge = Reference(theirs, list(_stem_and_rest(theirs)), case.late_names(), 3)
    stem, rest = _stem_and_rest(model)
    late.optimizer(stem, drives=False)
    late.optimizer(rest)
    late.start()
    judge.start()
    for index, batch in enumerate(case.batches(TURNS)):
        stem.zero_grad()
        rest.zero_grad()
        case.loss(batch)(model).backward()
        stem.step()
        assert late.turn == index % 3
        rest.step()
        assert late.turn == (index + 1) % 3
        judge.step(case.loss(batch))
    assert_matches(late, judge, 1e-12)


def test_an_optimizer_that_does_not_drive_may_step_again() -> None:
    case = Case(model="ln_mlp", family="norm", optimizer="sgd")
    model = case.plain()
    late = latephase.LatePhase(model, members=3, weights=["norm"])
    stem, rest = _stem_and_rest(model)
    late.optimizer(stem, drives=False)
    late.optimizer(rest)
    late.start()
    for batch in case.batches(2):
        for _ in range(3):
            case.loss(batch)(model).backward()
            stem.step()
        assert late.turn == 0
    rest.step()
    assert late.turn == 1


def _stem_and_rest(model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    return OPTIMIZERS["adam"](model[0].parameters()), OPTIMIZERS["nesterov"](model[1:].parameters())


class CountsInGroup(torch.optim.Optimizer):
    """Adam's bias correction from a counter in the group, as in timm's Lamb; it counts in every step()."""

    def __init__(self, params, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr, "step": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    m.lerp_(p.grad, 0.1)
                    p.sub_(m, alpha=group["lr"] / (1 - 0.9 ** group["step"]))


@pytest.mark.parametrize("start", [0, 3])
def test_counters_in_the_groups_count_rounds(start: int) -> None:
    case = Case(start=start)
    model, theirs = case.plain(), case.plain()
    optimizer = CountsInGroup(model.parameters())
    late = latephase.LatePhase(model, members=3)
    late.optimizer(optimizer)
    judge = Reference(theirs, CountsInGroup(theirs.parameters()), case.late_names(), 3)
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
