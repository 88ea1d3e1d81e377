"""A round's accumulated gradients: nothing is lost, nothing counts twice, nothing stays of a failed step."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import latephase
from cases import OPTIMIZERS, PAIRS, Case, assert_matches, assert_same, run, run_reference, tensors, train
from latephase.reference import Reference

TURNS = 7
FEW = PAIRS[::4]


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_several_backwards_make_one_turn(case: Case) -> None:
    model, optimizer, late = case.attach()
    _, _, judge = case.reference()
    late.start()
    judge.start()
    for x, y in case.batches(TURNS, size=6):
        halves = [(x[:3], y[:3]), (x[3:], y[3:])]
        optimizer.zero_grad()
        for half in halves:
            (case.loss(half)(model) / 2).backward()
        optimizer.step()
        judge.step(*(lambda m, half=half: case.loss(half)(m) / 2 for half in halves))
    assert_matches(late, judge, 1e-12)


def _zeroing(how: str, model: nn.Module, optimizer: torch.optim.Optimizer, late: latephase.LatePhase) -> None:
    if how.startswith("optimizer"):
        optimizer.zero_grad(set_to_none=how.endswith("none"))
    elif how.startswith("model"):
        model.zero_grad(set_to_none=how.endswith("none"))
    else:  # by hand
        for parameter in late.base_parameters() + late.late_parameters():
            parameter.grad = None


@pytest.mark.parametrize("how", ["optimizer-none", "optimizer-zeros", "model-none", "model-zeros", "hand"])
@pytest.mark.parametrize("when", ["before the forward", "before the backward", "after the step", "thrice"])
@pytest.mark.parametrize("case", FEW[:3], ids=str)
def test_zero_grad_never_loses_a_rounds_gradients(case: Case, how: str, when: str) -> None:
    model, optimizer, late = case.attach()
    judge = run_reference(replace(case, start=0), TURNS)
    late.start()
    for batch in case.batches(TURNS):
        if when in ("before the forward", "thrice"):
            _zeroing(how, model, optimizer, late)
        loss = case.loss(batch)(model)
        if when in ("before the backward", "thrice"):
            _zeroing(how, model, optimizer, late)
        loss.backward()
        optimizer.step()
        if when in ("after the step", "thrice"):
            _zeroing(how, model, optimizer, late)
    assert_matches(late, judge, 1e-12)


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_accumulation_in_place_equals_the_reference(case: Case) -> None:
    _, _, late = run(case, TURNS, accumulate="in_place")
    assert_matches(late, run_reference(case, TURNS), 1e-12)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_a_step_without_gradients_is_not_a_turn(case: Case) -> None:
    model, optimizer, late = case.attach()
    judge = run_reference(case, TURNS)
    train(case, model, optimizer, case.batches(case.start))
    late.start()
    for batch in case.batches(TURNS, first=case.start):
        before, turn = tensors(model), late.turn
        optimizer.zero_grad()
        optimizer.step()
        assert late.turn == turn
        assert_same(tensors(model), before)
        train(case, model, optimizer, [batch])
    assert_matches(late, judge, 1e-12)


class Fragile(torch.optim.SGD):
    """Raises on demand, before it changes anything; and calls its parent's step, as subclasses do."""

    broken = False

    def step(self, closure=None):
        if self.broken:
            raise OSError("the device is gone")
        return super().step(closure)


@pytest.mark.parametrize("turn", range(6))
@pytest.mark.parametrize("with_closure", [False, True])
def test_a_step_that_raises_leaves_nothing_behind(turn: int, with_closure: bool) -> None:
    case = Case(optimizer="nesterov")
    options = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-3}
    model, judge = case.plain(), run_reference(case, 8)
    optimizer = Fragile(model.parameters(), **options)
    late = latephase.LatePhase(model, members=3)
    late.optimizer(optimizer)
    train(case, model, optimizer, case.batches(case.start))
    late.start()
    for index, batch in enumerate(case.batches(8, first=case.start)):
        if index == turn:
            optimizer.zero_grad()
            loss = case.loss(batch)(model)
            statistics = {n: b.clone() for n, b in model.named_buffers()}
            loss.backward()
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            optimizer.broken = True

            def closure():
                raise OSError("the data is gone")

            with pytest.raises(OSError, match="gone"):
                optimizer.step(closure) if with_closure else optimizer.step()
            optimizer.broken = False
            assert late.turn == index % 3
            assert_same({n: p.detach() for n, p in model.named_parameters()}, before)
            assert_same(dict(model.named_buffers()), statistics)
            for (_, buffer), reference in zip(
                model.named_buffers(), _buffers_before(case, index), strict=True
            ):  # the failed minibatch's forward counted; the reference did not see it
                buffer.copy_(reference)
        train(case, model, optimizer, [batch])
    assert_matches(late, judge, 1e-12)


def _buffers_before(case: Case, turns: int) -> list[torch.Tensor]:
    judge = run_reference(case, turns)
    return list(judge.members[judge.turn].buffers())


@pytest.mark.parametrize("start", [0, 3])
def test_weights_without_a_gradient_stay_and_frozen_weights_stay(start: int) -> None:
    """A frozen layer never moves; a branch that only some minibatches take has gradients from those alone."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
            self.left, self.right, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.stem.bias.requires_grad_(False)
            self.norm.bias.requires_grad_(False)

        def forward(self, x, left):
            return self.head((self.left if left else self.right)(self.norm(self.stem(x))))

    def build(make):
        torch.manual_seed(0)
        model = Branches().double()
        return model, OPTIMIZERS["adamw"](p for p in model.parameters() if p.requires_grad), make

    model, optimizer, _ = build(None)
    late = latephase.LatePhase(model, members=3)
    late.optimizer(optimizer)
    theirs, clock, _ = build(None)
    names = [n for n in late.late_names() if n != "norm.bias"]
    judge = Reference(theirs, clock, names, 3)
    generator = torch.Generator().manual_seed(1)
    for index in range(start + TURNS):
        if index == start:
            late.start()
            judge.start()
        x = torch.randn(4, 4, dtype=torch.float64, generator=generator)

        def loss(net, x=x, left=index < start + 3 or index % 2 == 0):
            return F.mse_loss(net(x, left), x[:, :3])

        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        judge.step(loss)
    for k, member in enumerate(judge.members):
        with late.member(k):
            assert_same(tensors(model), tensors(member), 1e-12)
    assert model.stem.bias.grad is None
    assert torch.equal(model.stem.bias, build(None)[0].stem.bias)


def test_foreign_parameters_in_the_optimizer_count_as_base_weights() -> None:
    """A learnt temperature outside the model steps at the end of the round, on gamma times the sum."""
    case = Case(model="ln_mlp", start=0, gamma="mean")
    model, temperature = case.plain(), nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = torch.optim.SGD([*model.parameters(), temperature], lr=0.1)
    late = latephase.LatePhase(model, members=3, base_gradient="mean")
    late.optimizer(optimizer)
    late.start()
    total = torch.zeros((), dtype=torch.float64)
    for index, (x, y) in enumerate(case.batches(3)):
        assert temperature.item() == 1.0
        logits = model(x).detach()
        by_hand = nn.Parameter(torch.ones((), dtype=torch.float64))
        F.cross_entropy(logits * by_hand, y).backward()
        total += by_hand.grad
        optimizer.zero_grad()
        F.cross_entropy(model(x) * temperature, y).backward()
        optimizer.step()
        assert (temperature.item() != 1.0) == (index == 2)
    torch.testing.assert_close(temperature.detach(), 1.0 - 0.1 * total / 3, rtol=0, atol=1e-12)


def test_gradients_that_are_views_of_foreign_storage_are_copied() -> None:
    """Some wrappers hand out gradients as views of a buffer that they overwrite at the next backward."""
    case = Case(model="ln_mlp")
    model, optimizer, late = case.attach()
    judge = run_reference(replace(case, start=0), TURNS)
    bucket = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    late.start()
    for batch in case.batches(TURNS):
        optimizer.zero_grad()
        case.loss(batch)(model).backward()
        offset = 0
        for parameter in model.parameters():
            view = bucket[offset : offset + parameter.numel()].view_as(parameter)
            view.copy_(parameter.grad)
            parameter.grad = view
            offset += parameter.numel()
        optimizer.step()
        bucket.fill_(float("nan"))
    assert_matches(late, judge, 1e-12)
