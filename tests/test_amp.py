"""Mixed precision: skipped steps, a scale that changes inside a round, fused and foreach kernels, bfloat16."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import latephase
from cases import FACTORED, PAIRS, Case, assert_matches, assert_same, run_reference, tensors, train
from latephase.reference import Reference

TURNS = 8
KINDS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "single": {"foreach": False}}
MAKERS = {
    "nesterov": lambda p, **kw: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-3, **kw),
    "adam": lambda p, **kw: torch.optim.Adam(p, lr=1e-2, **kw),
    "adamw": lambda p, **kw: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.05, **kw),
}


def setup(case: Case, kind: str):
    model, theirs = case.plain(), case.plain()
    make = MAKERS[case.optimizer]
    optimizer = make(model.parameters(), **KINDS[kind])
    late = latephase.LatePhase(model, case.members, case.weights(), base_gradient=case.gamma)
    late.optimizer(optimizer)
    judge = Reference(
        theirs, make(theirs.parameters(), **KINDS[kind]), case.late_names(), case.members, base_gradient=case.gamma
    )
    return model, optimizer, late, judge


def scaled(case: Case, kind: str, bad: set[int], clip: float | None = None, start: int = 0, **scaling):
    """Trains with a gradient scaler; the minibatches numbered in `bad` overflow. The reference skips them."""
    model, optimizer, late, judge = setup(case, kind)
    scaler = torch.amp.GradScaler("cpu", **{"init_scale": 2.0**6, "growth_interval": 1000, **scaling})
    scales, clips = [], []
    for index, batch in enumerate(case.batches(TURNS)):
        if index == start:
            late.start()
            judge.start()
        factor = float("inf") if index in bad else 1.0
        optimizer.zero_grad()
        scaler.scale(case.loss(batch)(model) * factor).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            clips.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip))
        before, turn = {n: p.detach().clone() for n, p in model.named_parameters()}, late.turn
        scaler.step(optimizer)
        if index in bad:
            assert late.turn == turn
            assert_same({n: p.detach() for n, p in model.named_parameters()}, before)
        scaler.update()
        scales.append(scaler.get_scale())
        done = judge.step(
            lambda m, batch=batch, factor=factor: case.loss(batch)(m) * factor,
            clip=None if clip is None else lambda ps: torch.nn.utils.clip_grad_norm_(ps, clip),
        )
        assert done == (index not in bad)
    return late, judge, scales


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [{0}, {1}, {2}, {3, 4}, {0, 1, 2}, set()], ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_an_overflow_repeats_the_turn(name: str, bad: set[int], kind: str) -> None:
    """An inf at the first, a middle or the last turn of a round, and at several."""
    case = Case(optimizer=name, dtype=torch.float32)
    late, judge, _ = scaled(case, kind, bad)
    assert_matches(late, judge, 1e-5)
    assert late.rounds * 3 + late.turn == TURNS - len(bad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [set(), {1}, {2, 3}], ids=str)
@pytest.mark.parametrize("gamma", ["sum", "mean"])
def test_a_scale_that_changes_inside_the_round(gamma: str, bad: set[int], kind: str) -> None:
    case = Case(optimizer="adam", gamma=gamma, dtype=torch.float32)
    late, judge, scales = scaled(case, kind, bad, growth_interval=1, growth_factor=4.0)
    assert len(set(scales)) > 4
    assert_matches(late, judge, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [set(), {2}, {3}], ids=str)
def test_unscaling_and_clipping_per_minibatch(bad: set[int], kind: str) -> None:
    case = Case(optimizer="nesterov", dtype=torch.float32)
    late, judge, _ = scaled(case, kind, bad, clip=0.2, growth_interval=2)
    assert_matches(late, judge, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [c for c in PAIRS if c.optimizer in MAKERS and c.family not in FACTORED][::3], ids=str)
def test_kernels_agree_with_the_reference_without_a_scaler(case: Case, kind: str) -> None:
    model, optimizer, late, judge = setup(case, kind)
    late.start()
    judge.start()
    for batch in case.batches(TURNS):
        optimizer.zero_grad()
        case.loss(batch)(model).backward()
        optimizer.step()
        judge.step(case.loss(batch))
    assert_matches(late, judge, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MAKERS)
def test_reset_members_with_every_kernel(name: str, kind: str) -> None:
    """The base weights have moments and the members begin without."""
    case = Case(optimizer=name)
    model = case.plain()
    optimizer = MAKERS[name](model.parameters(), **KINDS[kind])
    late = latephase.LatePhase(model, case.members, case.weights(), optimizer_state="reset")
    late.optimizer(optimizer)
    train(case, model, optimizer, case.batches(case.start))
    late.start()
    train(case, model, optimizer, case.batches(TURNS, first=case.start))
    assert_matches(late, run_reference(case, TURNS, optimizer_state="reset"), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [{0}, {1, 2}], ids=str)
def test_one_member_with_a_scaler_is_plain_training_bit_for_bit(bad: set[int], kind: str) -> None:
    """Also what a skipped minibatch leaves: its forward pass has moved the running statistics."""

    def trained(with_phase: bool):
        case = Case(optimizer="adam", dtype=torch.float32)
        model = case.plain()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, **KINDS[kind])
        if with_phase:
            late = latephase.LatePhase(model, members=1)
            late.optimizer(optimizer)
            late.start()
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
        for index, batch in enumerate(case.batches(5)):
            optimizer.zero_grad()
            scaler.scale(case.loss(batch)(model) * (float("inf") if index in bad else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        return tensors(model)

    assert_same(trained(True), trained(False))


@pytest.mark.parametrize("model_name", ["bn_cnn", "ln_mlp", "transformer", "wrn_10_1"])
def test_bfloat16_autocast_equals_the_reference_and_learns(model_name: str) -> None:
    case = Case(model=model_name, optimizer="sgd", gamma="mean", start=2, dtype=torch.float32)
    model, optimizer, late = case.attach()
    _, _, judge = case.reference()

    def loss(net: nn.Module, batch) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.cross_entropy(net(batch[0]), batch[1])

    (batch,) = case.batches(1, size=8)
    history = []
    for index in range(26):
        if index == case.start:
            late.start()
            judge.start()
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        judge.step(lambda net: loss(net, batch))
        history.append(value.item())
    assert history[-1] < 0.9 * history[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert_matches(late, judge, 1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert loss(model.eval(), batch).item() < 0.9 * history[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_trains(dtype: torch.dtype) -> None:
    case = Case(model="ln_mlp", optimizer="sgd", dtype=dtype)
    model, optimizer, late = case.attach()
    judge = run_reference(replace(case, start=0), 6)
    late.start()
    for batch in case.batches(6):
        optimizer.zero_grad()
        case.loss(batch)(model).backward()
        optimizer.step()
    assert_matches(late, judge, 2e-2)
    assert {t.dtype for t in late.averaged_state_dict().values()} == {dtype}
    assert {t.dtype for t in late.collapse().state_dict().values()} == {dtype}
