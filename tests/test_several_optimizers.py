"""Several optimizers over one model: a turn ends when each has stepped."""

import pytest
import torch
from torch import nn

import latephase
from cases import FACTORED, OPTIMIZERS, PAIRS, Case, assert_matches, assert_same, tensors
from latephase.reference import Reference

TURNS = 7


def _parts(model: nn.Module):
    """Convolutions and matrices to one optimizer, vectors to another: each holds base and late weights."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return OPTIMIZERS["nesterov"](matrices), OPTIMIZERS["adam"](vectors)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("case", [c for c in PAIRS if c.family not in FACTORED][::4], ids=str)
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


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_factor_steps_once_a_turn_where_another_optimizer_has_its_weight(order: tuple[int, int]) -> None:
    """As with one optimizer for matrices and one for all else, built after the factors are there."""
    case = Case(family="rank-one")
    model = case.plain()
    late = latephase.LatePhase(model, case.members, case.weights())
    parameters = list(model.parameters())
    optimizers = [
        torch.optim.SGD([p for p in parameters if (p.ndim > 1) == matrices], lr=0.1) for matrices in (True, False)
    ]
    for index in order:
        late.optimizer(optimizers[index])
    held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(parameters)
    assert set(late.late_parameters()) <= set(optimizers[1].param_groups[0]["params"])


@pytest.mark.parametrize("fused", [False, True])
def test_the_average_knows_of_a_step_within_a_turn(fused: bool) -> None:
    """Fused kernels update weights in place without counting that as a change of them."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    first = torch.optim.AdamW(model[:2].parameters(), lr=0.1, fused=fused)
    second = torch.optim.SGD(model[2].parameters(), lr=0.1)
    late = latephase.LatePhase(model, members=2, weights="full")
    late.optimizer(first), late.optimizer(second)
    late.start()
    before = late.averaged_state_dict()
    model(torch.randn(8, 3)).square().mean().backward()
    first.step()
    average = late.averaged_state_dict()["0.weight"]
    assert not torch.equal(average, before["0.weight"])
    torch.testing.assert_close(average, (model[0].weight.detach() + before["0.weight"]) / 2)
