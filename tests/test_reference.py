"""The judge itself, by hand: on a problem small enough for pencil and paper, and against plain training."""

import pytest
import torch
from torch import nn

from cases import OPTIMIZERS, Case, assert_same, tensors, train
from latephase.reference import Reference


class Product(nn.Module):
    """Loss a * theta + b * phi: the gradients are a and b, whatever the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.theta, self.phi = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))

    def forward(self, a: float, b: float) -> torch.Tensor:
        return a * self.theta + b * self.phi


def judge(gamma="sum", members: int = 2, momentum: float = 0.0, state: str = "copy") -> tuple[Reference, object]:
    model = Product()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=momentum)
    return Reference(model, optimizer, ["phi"], members, base_gradient=gamma, optimizer_state=state), optimizer


@pytest.mark.parametrize(("gamma", "factor"), [("sum", 1.0), ("mean", 0.5), (0.25, 0.25)])
def test_one_round_by_hand(gamma, factor: float) -> None:
    reference, _ = judge(gamma)
    reference.start()
    reference.step(lambda m: m(1.0, 3.0))
    first, second = reference.members
    assert (first.phi.item(), second.phi.item()) == (2.0 - 0.5 * 3.0, 2.0)
    assert (first.theta.item(), reference.model.theta.item()) == (1.0, 1.0)  # the base weights wait
    reference.step(lambda m: m(4.0, -1.0))
    assert (first.phi.item(), second.phi.item()) == (0.5, 2.5)
    theta = 1.0 - 0.5 * factor * (1.0 + 4.0)
    assert [m.theta.item() for m in (reference.model, first, second)] == [theta] * 3
    assert reference.average().phi.item() == 1.5
    assert reference.turn == 0


def test_rates_of_the_minibatch_and_of_the_rounds_last() -> None:
    reference, clock = judge()
    reference.start()
    for rate, (a, b) in zip((0.5, 0.1), ((1.0, 1.0), (2.0, 1.0)), strict=True):
        clock.param_groups[0]["lr"] = rate
        reference.step(lambda m, a=a, b=b: m(a, b))
    assert [m.phi.item() for m in reference.members] == pytest.approx([2.0 - 0.5, 2.0 - 0.1])
    assert reference.model.theta.item() == pytest.approx(1.0 - 0.1 * 3.0)


@pytest.mark.parametrize(("state", "carried"), [("copy", 0.9), ("reset", 0.0)])
def test_members_begin_with_the_moments_or_without(state: str, carried: float) -> None:
    reference, _ = judge(momentum=0.9, state=state)
    reference.step(lambda m: m(1.0, 1.0))  # before the start: phi = 1.5, momentum 1
    reference.start()
    reference.step(lambda m: m(1.0, 1.0))
    assert reference.members[0].phi.item() == pytest.approx(1.5 - 0.5 * (carried + 1.0))
    reference.step(lambda m: m(1.0, 1.0))
    assert reference.model.theta.item() == pytest.approx(0.5 - 0.5 * (0.9 + 2.0))  # theta keeps its own always


def test_a_gradient_that_is_not_finite_is_no_turn() -> None:
    reference, _ = judge()
    reference.start()
    assert not reference.step(lambda m: m(float("inf"), 1.0))
    assert reference.turn == 0
    assert reference.step(lambda m: m(1.0, 1.0))
    assert reference.step(lambda m: m(1.0, 0.0), clip=lambda ps: [p.grad.mul_(0.5) for p in ps])
    assert reference.model.theta.item() == 1.0 - 0.5 * 1.5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_member_is_plain_training(name: str) -> None:
    case = Case(optimizer=name, members=1)
    model, _, reference = case.reference()
    for index, batch in enumerate(case.batches(6)):
        if index == 3:
            reference.start()
        reference.step(case.loss(batch))
    plain = case.plain()
    train(case, plain, OPTIMIZERS[name](plain.parameters()), case.batches(6))
    assert_same(tensors(reference.members[0]), tensors(plain))
    assert torch.equal(model.conv1.weight, plain.conv1.weight)


def test_the_fold_by_hand() -> None:
    """One channel, two members: the averaged layer gives the mean of the two outputs at every input."""
    for late in (["0.weight", "0.bias"], ["1.weight"]):
        model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)).double()
        reference = Reference(model, torch.optim.SGD(model.parameters(), lr=0.1), late, 2)
        reference.start()
        for member, mean, variance in zip(reference.members, (1.0, -3.0), (4.0, 0.25), strict=True):
            member[0].running_mean.fill_(mean)
            member[0].running_var.fill_(variance)
        if late[0] == "0.weight":
            reference.members[0][0].weight.data.fill_(5.0)
            reference.members[1][0].bias.data.fill_(-2.0)
        x = torch.tensor([[-2.0], [0.0], [7.0]], dtype=torch.float64)
        mean = torch.stack([member[0].eval()(x) for member in reference.members]).mean(0)
        torch.testing.assert_close(reference.average()[0].eval()(x), mean, rtol=0, atol=1e-12)


def test_bad_arguments() -> None:
    model = Product()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with pytest.raises(ValueError, match="psi"):
        Reference(model, optimizer, ["psi"], 2)
    with pytest.raises(ValueError, match="members is 0"):
        Reference(model, optimizer, ["phi"], 0)
    reference = Reference(model, optimizer, ["phi"], 2)
    reference.start()
    with pytest.raises(RuntimeError, match="once"):
        reference.start()
