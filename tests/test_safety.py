"""What would train on the wrong weights fails loudly: never a silently wrong gradient."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import latephase
from cases import Case, assert_same, run, tensors, train


def eval_train(model, late):
    model.eval()
    model.train()


def only_eval(model, late):
    model.eval()


def other_member(model, late):
    with late.member(2):
        pass


def averaged(model, late):
    with late.average():
        pass


def predicted(model, late):
    late.predict(torch.zeros(4, *((2, 6, 6) if hasattr(model, "conv1") else (5,)), dtype=torch.float64))


CHANGES = [eval_train, only_eval, other_member, averaged, predicted]
LOUD = (RuntimeError,)  # autograd's version check and LatePhaseError are both RuntimeErrors


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("model_name", "weights"),
    [
        ("bn_cnn", ["norm", "head"]),
        ("bn_cnn", [latephase.Parameters("fc.bias")]),  # an additive bias: no backward saves it
        ("ln_mlp", [latephase.Parameters("*.bias")]),
        ("ln_mlp", ["full"]),
        ("ln_mlp", [latephase.RankOne()]),
        ("ln_mlp", [latephase.Hypernetwork(names=["0", "3"])]),
    ],
)
def test_a_backward_after_the_member_changed_is_loud_or_right(model_name, weights, change) -> None:
    case = Case(model=model_name)
    model = case.plain()
    late = latephase.LatePhase(model, members=3, weights=weights, noise=0.3)
    late.start()
    batch, _ = case.batches(2)
    case.loss(batch)(model).backward()
    right = gradients(model)
    model.zero_grad()
    loss = case.loss(batch)(model)
    change(model, late)
    try:
        loss.backward()
    except LOUD:
        assert not gradients(model)  # it fails before anything reaches a weight
        return
    assert change is not only_eval  # then another member, or the average, is in the model
    assert_same(gradients(model), right, 1e-12)


@pytest.mark.parametrize("weights", [["norm", "head"], [latephase.Parameters("*.bias")], [latephase.RankOne()]])
def test_a_backward_after_the_turn_is_loud(weights) -> None:
    case = Case(model="ln_mlp")
    model = case.plain()
    late = latephase.LatePhase(model, members=3, weights=weights)
    optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    late.start()
    first, second = case.batches(2)
    stale = case.loss(first)(model)
    train(case, model, optimizer, [second])
    optimizer.zero_grad()
    with pytest.raises(LOUD):
        stale.backward()
    assert not gradients(model)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("change", CHANGES[:4])
def test_activation_checkpointing_recomputes_with_the_forwards_member_or_is_loud(change, reentrant) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.head = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)

        def body(self, x):
            return self.head(self.norm(x).tanh())

        def forward(self, x):
            return checkpoint(self.body, self.stem(x), use_reentrant=reentrant)

    model = Checkpointed().double()
    late = latephase.LatePhase(model, members=3, weights=["norm", "head"], noise=0.5)
    late.start()
    x = torch.randn(4, 5, dtype=torch.float64)
    model(x).square().sum().backward()
    right = gradients(model)
    model.zero_grad()
    loss = model(x).square().sum()
    change(model, late)
    try:
        loss.backward()
    except LOUD:
        assert not gradients(model)
        return
    assert change is not only_eval
    assert_same(gradients(model), right, 1e-12)


def test_activation_checkpointing_trains_like_the_plain_forward() -> None:
    class Net(nn.Module):
        def __init__(self, checkpointed: bool) -> None:
            super().__init__()
            self.checkpointed = checkpointed
            self.stem, self.norm, self.head = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, x):
            h = self.stem(x)
            block = lambda h: self.head(self.norm(h).tanh())  # noqa: E731
            return checkpoint(block, h, use_reentrant=False) if self.checkpointed else block(h)

    def trained(checkpointed: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = Net(checkpointed).double()
        late = latephase.LatePhase(model, members=3)
        optimizer = late.optimizer(torch.optim.Adam(model.parameters(), lr=0.01))
        late.start()
        train(Case(model="ln_mlp"), model, optimizer, Case(model="ln_mlp").batches(7))
        return dict(late.averaged_state_dict())

    assert_same(trained(True), trained(False), 1e-13)


@contextmanager
def in_eval(model, late):
    model.eval()
    yield
    model.train()


SITUATIONS = {
    "eval mode": in_eval,
    "another member": lambda model, late: late.member(2),
    "the average": lambda model, late: late.average(),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_step_on_anything_but_the_turns_member_is_an_error(situation: str) -> None:
    case = Case()
    model, optimizer, late = run(case, 4)
    judge_model, judge_optimizer, judge = run(case, 4)
    extra = list(case.batches(5, first=20))
    with SITUATIONS[situation](model, late):
        loss = case.loss(extra[0])(model)
        loss.backward()
        before = tensors(model)
        with pytest.raises(latephase.LatePhaseError, match=r"average|member"):
            optimizer.step()
        assert_same(tensors(model), before)
        optimizer.zero_grad()
    assert late.turn == 1
    if situation != "eval mode":  # the forward under the context moved that member's statistics: not compared
        return
    train(case, model, optimizer, extra)
    train(case, judge_model, judge_optimizer, extra)
    assert_same(dict(late.averaged_state_dict()), dict(judge.averaged_state_dict()))


def test_the_autocast_cache_does_not_outlive_a_member() -> None:
    """Within one autocast context the casted weights are kept: they must be those of the member in the model.

    facebookresearch/schedule_free#8: swapped weights under autocast gave NaN.
    """
    case = Case(model="ln_mlp", dtype=torch.float32)
    model = case.plain()
    late = latephase.LatePhase(model, members=3, weights=["full"], noise=0.5)
    late.start()
    (batch,) = case.batches(1)
    x = batch[0]

    def seen() -> list[torch.Tensor]:
        outputs = []
        for k in range(3):
            with late.member(k):
                outputs.append(model(x).detach().clone())
        model.eval()
        outputs.append(model(x).detach().clone())
        model.train()
        return [*outputs, model(x).detach().clone()]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = seen()
    apart = []
    for k in range(3):
        with late.member(k), torch.autocast("cpu", dtype=torch.bfloat16):
            apart.append(model(x).detach())
    for ours, theirs in zip(together, apart, strict=False):
        assert torch.equal(ours, theirs)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[3], together[0])
    assert torch.equal(together[4], together[0])


def test_inference_mode_and_no_grad_leave_no_trace() -> None:
    """The average made under inference_mode is usable, and trainable, outside of it."""
    case = Case()
    model, optimizer, late = run(case, 4)
    expected_model, expected_optimizer, _ = run(case, 4)
    (batch,) = case.batches(1, first=40)
    with torch.inference_mode():
        model.eval()
        model(batch[0])
        late.averaged_state_dict()
        late.predict(batch[0])
        model.train()
    more = list(case.batches(4, first=7))
    train(case, model, optimizer, more)
    train(case, expected_model, expected_optimizer, more)
    assert_same(tensors(model), tensors(expected_model))
    model.eval()
    F.cross_entropy(model(batch[0]), batch[1]).backward()  # gradients of the averaged model, for attacks or saliency
    assert all(p.grad is not None for p in model.parameters())
