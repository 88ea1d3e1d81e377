"""What users do between the lines: moving the model, replacing parts, failing calls, partial loads, odd gradients."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import latephase
from cases import OPTIMIZERS, Case, assert_matches, assert_same, run, run_reference, tensors, train
from latephase import LatePhaseError
from latephase.reference import Reference

TURNS = 7


def every_member(late: latephase.LatePhase) -> list[dict[str, torch.Tensor]]:
    held = []
    for k in range(late.members):
        with late.member(k):
            held.append(tensors(late.model))
    return held


@pytest.mark.parametrize("family", ["norm+head", "rank-one"])
def test_the_model_may_move_between_attachment_and_start(family: str) -> None:
    """Trainers move a model after callbacks attached to it; Module.to() makes new buffers."""
    case = Case(family=family, start=0)
    model = case.plain().float()
    late = latephase.LatePhase(model, case.members, case.weights())
    model.double()
    model.load_state_dict(case.plain().state_dict())
    optimizer = late.optimizer(OPTIMIZERS[case.optimizer](model.parameters()))
    late.start()
    train(case, model, optimizer, case.batches(TURNS))
    assert_matches(late, run_reference(case, TURNS), 1e-12)


@pytest.mark.parametrize("use", ["step", "eval", "state_dict", "collapse"])
def test_a_model_that_moves_after_the_start_is_followed_or_refused(use: str) -> None:
    case = Case(start=0)
    model, optimizer, late = case.attach()
    late.start()
    train(case, model, optimizer, case.batches(4))
    model.float()
    try:
        if use == "step":
            train(case, model, optimizer, [(x.float(), y) for x, y in case.batches(1)])
        elif use == "eval":
            model.eval()
        elif use == "collapse":
            late.collapse()
    except LatePhaseError:
        return
    if use == "step":
        train(case, model, optimizer, [(x.float(), y) for x, y in case.batches(1, first=1)])
    try:
        average = dict(model.state_dict())
    except LatePhaseError:
        return
    assert {t.dtype for t in average.values() if t.is_floating_point()} == {torch.float32}
    if use != "collapse":
        assert_same(dict(tensors(model.eval())), average)


def test_a_move_to_where_it_is_changes_nothing() -> None:
    case = Case(start=0)
    model, optimizer, late = case.attach()
    late.start()
    for batch in case.batches(TURNS):
        model.to("cpu").to(torch.float64)
        train(case, model, optimizer, [batch])
    assert_matches(late, run_reference(case, TURNS), 1e-12)


def test_a_layer_replaced_between_attachment_and_start_is_named() -> None:
    model = Case().plain()
    late = latephase.LatePhase(model, members=2)
    model.fc = nn.Linear(5, 3).double()
    with pytest.raises(LatePhaseError, match=r"fc\.weight"):
        late.start()
    assert late.phase == "attached"


def test_start_in_eval_mode() -> None:
    case = Case(start=0)
    model, optimizer, late = case.attach()
    model.eval()
    late.start()
    model.train()
    train(case, model, optimizer, case.batches(TURNS))
    assert_matches(late, run_reference(case, TURNS), 1e-12)


def test_a_start_that_fails_draws_no_noise() -> None:
    model = Case().plain()
    late = latephase.LatePhase(model, members=3, noise=0.1)
    late.optimizer(torch.optim.SGD([model.conv1.weight], lr=0.1))
    before = tensors(model)
    with pytest.raises(LatePhaseError):
        late.start()
    assert_same(tensors(model), before)
    late.optimizer(torch.optim.SGD([p for n, p in model.named_parameters() if n != "conv1.weight"], lr=0.1))
    late.start()
    straight = latephase.LatePhase(Case().plain(), members=3, noise=0.1)
    straight.start()
    for ours, theirs in zip(every_member(late), every_member(straight), strict=True):
        assert_same(ours, theirs)


def test_a_collapse_whose_check_cannot_run_changes_nothing() -> None:
    case = Case()
    model, optimizer, late = run(case, 4)
    before = tensors(model)
    with pytest.raises(RuntimeError):
        late.collapse(check=torch.zeros(3))
    assert late.phase == "late"
    assert_same(tensors(model), before)
    train(case, model, optimizer, case.batches(3, first=7))
    assert_matches(late, run_reference(case, 7), 1e-12)


def part(model: nn.Module, **tensors: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
    """A state dict of some tensors, with the versions that torch writes into it.

    Without them BatchNorm takes it for one of an old torch, and adds a count of batches that nobody saved.
    """
    state = OrderedDict((name.replace("__", "."), tensor) for name, tensor in tensors.items())
    state._metadata = model.state_dict()._metadata
    return state


def test_a_load_that_fails_changes_no_member() -> None:
    model, _, late = run(Case(), 4)
    before = every_member(late)
    with pytest.raises(RuntimeError, match="nonsense"):
        model.load_state_dict(part(model, nonsense=torch.zeros(1)))
    for ours, theirs in zip(every_member(late), before, strict=True):
        assert_same(ours, theirs)


def test_a_load_of_some_tensors_gives_the_members_those_alone() -> None:
    model, _, late = run(Case(), 4)
    before = every_member(late)
    bias = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    model.load_state_dict(part(model, fc__bias=bias), strict=False)
    for ours, theirs in zip(every_member(late), before, strict=True):
        assert_same(ours, {**theirs, "fc.bias": bias})


def test_a_scaler_with_a_parallel_pass_is_refused() -> None:
    case = Case(start=0, dtype=torch.float32)
    for kind in ({"foreach": False}, {"fused": True}):
        model = case.plain()
        late = latephase.LatePhase(model, members=3)
        optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1, **kind))
        late.start()
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        ((x, y),) = case.batches(1, size=12)
        scaler.scale(F.cross_entropy(late.parallel(x), y)).backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        with pytest.raises(LatePhaseError, match=r"[Ss]cal"):
            scaler.step(optimizer)
        assert_same({name: p.detach() for name, p in model.named_parameters()}, before)


def test_gradients_of_another_member_do_not_reach_the_turns() -> None:
    """A backward inside late.member(2), a step outside: those gradients are not this member's."""
    case = Case(start=0)
    model, optimizer, late = case.attach(noise=0.5)
    late.start()
    (batch,) = case.batches(1)
    with late.member(2):
        case.loss(batch)(model).backward()
    with pytest.raises(LatePhaseError, match="2"):
        optimizer.step()
    optimizer.zero_grad()
    train(case, model, optimizer, [batch])
    assert late.turn == 1


def test_an_evaluation_between_backward_and_step_is_fine() -> None:
    case = Case(start=0)
    model, optimizer, late = case.attach()
    late.start()
    (probe,) = case.batches(1, first=80)
    for batch in case.batches(TURNS):
        optimizer.zero_grad()
        case.loss(batch)(model).backward()
        model.eval()
        model(probe[0])
        model.train()
        late.predict(probe[0])
        optimizer.step()
    assert_matches(late, run_reference(case, TURNS), 1e-12)


def test_changes_made_to_a_member_by_hand_are_in_the_average() -> None:
    model, _, late = run(Case(), 4)
    late.averaged_state_dict()
    for change in (lambda p: p.data.fill_(8.0), lambda p: p.detach().fill_(9.0)):
        for k in range(3):
            with late.member(k):
                change(model.fc.bias)
        with late.member(0):
            value = model.fc.bias.detach().clone()
        assert torch.equal(late.averaged_state_dict()["fc.bias"], value)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, affine=True, track_running_stats=True)])
def test_a_forward_pass_without_a_step_moves_the_average_too(layer: nn.Module) -> None:
    """In training mode it moves the running statistics of the turn's member, after the average was cached."""
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 2)).double()
    late = latephase.LatePhase(model, members=2)
    late.start()
    for _ in range(2):
        model.eval()
        model.train()
        model(torch.randn(4, 3, 4).double() + 3)
        means = [held["0.running_mean"] for held in every_member(late)]
        torch.testing.assert_close(
            late.averaged_state_dict()["0.running_mean"], torch.stack(means).mean(0), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("weights", [["norm"], ["full"]])
def test_sparse_gradients(weights: list[str]) -> None:
    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.LayerNorm(4), nn.Flatten(), nn.Linear(16, 3))
        return model.double(), torch.optim.SGD(model.parameters(), lr=0.1)

    model, optimizer = build()
    late = latephase.LatePhase(model, 3, weights)
    late.optimizer(optimizer)
    judge = Reference(*build(), late.late_names(), 3)
    late.start()
    judge.start()
    for x, y in Case(model="tied").batches(TURNS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        judge.step(lambda m, x=x, y=y: F.cross_entropy(m(x), y))
    assert_matches(late, judge, 1e-12)


def test_weights_unfrozen_in_the_middle_join_the_rounds() -> None:
    """add_param_group in the late phase: new base weights wait for the end of the round as the others do."""
    case = Case(family="head", start=0)
    model = case.plain()
    model.conv1.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    late = latephase.LatePhase(model, members=3, weights=["head"])
    late.optimizer(optimizer)
    late.start()
    train(case, model, optimizer, case.batches(4))
    model.conv1.requires_grad_(True)
    optimizer.add_param_group({"params": list(model.conv1.parameters())})
    before, total = model.conv1.weight.detach().clone(), 0
    for index, batch in enumerate(case.batches(2, first=4)):
        assert torch.equal(model.conv1.weight, before)
        optimizer.zero_grad()
        case.loss(batch)(model).backward()
        total = total + model.conv1.weight.grad.clone()
        optimizer.step()
        assert late.turn == (2, 0)[index]
    torch.testing.assert_close(model.conv1.weight.detach(), before - 0.1 * total, rtol=0, atol=1e-13)


def test_a_context_keeps_its_member_when_the_turn_passes_on_in_it() -> None:
    case = Case()
    model, optimizer, late = run(case, 0)
    with late.member(0):
        train(case, model, optimizer, case.batches(1, first=case.start))
        assert late.turn == 1
        inside = tensors(model)
        with pytest.raises(LatePhaseError, match="member 0 is in the model and it is member 1's turn"):
            optimizer.step()
    with late.member(0):
        assert_same(inside, tensors(model))
    train(case, model, optimizer, case.batches(TURNS - 1, first=case.start + 1))
    assert_matches(late, run_reference(case, TURNS), 1e-12)


def test_gradients_of_another_member_are_refused_as_often_as_they_are_tried() -> None:
    case = Case()
    model, optimizer, late = run(case, 0)
    optimizer.zero_grad()
    with late.member(1):
        case.loss(next(case.batches(1)))(model).backward()
    before = every_member(late)
    for _ in range(2):
        with pytest.raises(LatePhaseError, match="gradients of member 1, in the turn of member 0"):
            optimizer.step()
    for member, then in zip(every_member(late), before, strict=True):
        assert_same(member, then)


@pytest.mark.parametrize("accumulate", ["copy", "in_place"])
def test_a_look_at_another_members_gradients_is_no_part_of_the_round(accumulate: str) -> None:
    case = Case("ln_mlp", start=0)
    model, optimizer, late = run(case, 1, accumulate=accumulate)
    batch = next(case.batches(1, first=50))
    with late.member(2):
        case.loss(batch)(model).backward()
        assert all(p.grad is not None for p in late.base_parameters())
    optimizer.zero_grad()
    train(case, model, optimizer, case.batches(TURNS - 1, first=1))
    assert_matches(late, run_reference(case, TURNS), 1e-12)
