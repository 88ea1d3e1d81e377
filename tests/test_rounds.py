"""Algorithm 1: the members' turns equal the reference, and with one member they are plain training."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR

from cases import (
    EVERY,
    FACTORED,
    OPTIMIZERS,
    PAIRS,
    TRIPLES,
    Case,
    assert_matches,
    assert_same,
    run,
    run_reference,
    tensors,
    train,
)

TURNS = 7  # two rounds of three members and a turn of the third


def decay(minibatch: int) -> float:
    return 1.0 / (1.0 + minibatch)


def clip(parameters) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, 0.3)


@pytest.mark.parametrize("case", TRIPLES, ids=str)
def test_the_loop_equals_the_reference(case: Case) -> None:
    _, _, late = run(case, TURNS)
    assert_matches(late, run_reference(case, TURNS), 1e-12)
    assert late.rounds == 2


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_the_loop_equals_the_reference_in_float32(case: Case) -> None:
    case = replace(case, dtype=torch.float32)
    _, _, late = run(case, TURNS)
    assert_matches(late, run_reference(case, TURNS), 1e-5)


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_each_minibatch_has_its_own_learning_rate_and_clip(case: Case) -> None:
    model, optimizer, late = case.attach()
    scheduler = LambdaLR(optimizer, decay)
    _, clock, judge = case.reference()
    pace = LambdaLR(clock, decay)
    for index, batch in enumerate(case.batches(case.start + TURNS)):
        if index == case.start:
            late.start()
            judge.start()
        train(case, model, optimizer, [batch], after_backward=clip, after_step=scheduler.step)
        judge.step(case.loss(batch), clip=clip)
        pace.step()
    assert_matches(late, judge, 1e-12)


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_a_closure_is_a_turn(case: Case) -> None:
    model, optimizer, late = case.attach()
    judge = run_reference(case, TURNS)
    for index, batch in enumerate(case.batches(case.start + TURNS)):
        if index == case.start:
            late.start()

        def closure(batch=batch):
            optimizer.zero_grad()
            value = case.loss(batch)(model)
            value.backward()
            return value

        before = late.turn
        assert optimizer.step(closure).requires_grad  # step() returns the closure's loss, as ever
        assert late.turn == ((before + 1) % case.members if index >= case.start else 0)
    assert_matches(late, judge, 1e-12)


def _plain(case: Case, minibatches: int):
    model = case.plain()
    optimizer = OPTIMIZERS[case.optimizer](model.parameters())
    scheduler = LambdaLR(optimizer, decay)
    train(case, model, optimizer, case.batches(minibatches), clip, scheduler.step)
    return model, optimizer


def _phase(case: Case, minibatches: int, start: int | None):
    model, optimizer, late = case.attach()
    scheduler = LambdaLR(optimizer, decay)
    train(case, model, optimizer, case.batches(minibatches if start is None else start), clip, scheduler.step)
    if start is not None:
        late.start()
        rest = case.batches(minibatches - start, first=start)
        train(case, model, optimizer, rest, clip, scheduler.step)
    return model, optimizer, late


def _optimizer_tensors(model, optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": torch.as_tensor(value).clone()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if value is not None
    }


ONE = [
    replace(case, members=1, optimizer=name, dtype=dtype)
    for index, case in enumerate(EVERY)
    for name, dtype in [(list(OPTIMIZERS)[index % 5], (torch.float32, torch.float64)[index % 2])]
]


@pytest.mark.parametrize("gamma", ["sum", "mean"])
@pytest.mark.parametrize("case", ONE, ids=str)
def test_one_member_is_plain_training_bit_for_bit(case: Case, gamma: str) -> None:
    case = replace(case, gamma=gamma)
    model, optimizer, late = _phase(case, 6, start=2)
    if case.family in FACTORED:  # plain training of the model with one member's factors
        expected, theirs, _ = _phase(case, 6, start=None)
    else:
        expected, theirs = _plain(case, 6)
    assert_same(tensors(model), tensors(expected))
    assert_same(_optimizer_tensors(model, optimizer), _optimizer_tensors(expected, theirs))
    assert_same(dict(late.averaged_state_dict()), dict(expected.state_dict()))


@pytest.mark.parametrize("case", [c for c in ONE if c.family not in FACTORED], ids=str)
def test_before_the_start_nothing_is_touched(case: Case) -> None:
    case = replace(case, members=3)
    model, optimizer, late = _phase(case, 4, start=None)
    expected, theirs = _plain(case, 4)
    assert late.phase == "attached"
    assert_same(tensors(model), tensors(expected))
    assert_same(_optimizer_tensors(model, optimizer), _optimizer_tensors(expected, theirs))
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_only_the_named_tensors_differ_between_members(case: Case) -> None:
    model, _, late = run(case, TURNS)
    held = []
    for k in range(case.members):
        with late.member(k):
            held.append(tensors(model))
    named = case.late_names()
    assert set(late.late_names()) == named
    differ = {n for n in held[0] if not all(torch.equal(h[n], held[0][n]) for h in held[1:])}
    statistics = {n for n in differ if n.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")}
    assert differ - statistics == named & differ
    # Every late tensor that had a gradient differs; only a key's bias has none, as softmax does not see it.
    assert named == differ - statistics


def test_the_parameters_are_shared_out_between_base_and_late() -> None:
    model, _, late = Case().attach()
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert [names[p] for p in late.late_parameters()] == late.late_names()
    assert {names[p] for p in late.base_parameters()} == set(names.values()) - set(late.late_names())


def test_base_weights_move_at_the_last_turn_of_a_round_only() -> None:
    case = Case(family="head", optimizer="sgd", start=0)
    model, optimizer, late = case.attach()
    late.start()
    for turn, batch in enumerate(case.batches(6)):
        assert (late.turn, late.rounds) == (turn % 3, turn // 3)
        before = tensors(model)
        train(case, model, optimizer, [batch])
        moved = not torch.equal(model.conv1.weight, before["conv1.weight"])
        assert moved == (turn % 3 == 2)
    assert (late.turn, late.rounds) == (0, 2)


@given(
    members=st.integers(1, 5),
    turns=st.integers(0, 8),
    start=st.integers(0, 2),
    gamma=st.one_of(st.sampled_from(["sum", "mean"]), st.floats(0.01, 2.0)),
    sizes=st.lists(st.integers(2, 5), min_size=10, max_size=10),
    row=st.sampled_from([c for c in PAIRS if c.model != "wrn_10_1"]),
)
def test_any_number_of_members_turns_and_batch_sizes(members, turns, start, gamma, sizes, row) -> None:
    case = replace(row, members=members, gamma=gamma, start=start)
    model, optimizer, late = case.attach()
    _, _, judge = case.reference()
    for index in range(start + turns + 1):
        if index == start:
            late.start()
            judge.start()
        if index == start + turns:
            break
        (batch,) = case.batches(1, size=sizes[index % len(sizes)], first=index)
        train(case, model, optimizer, [batch])
        judge.step(case.loss(batch))
    assert_matches(late, judge, 1e-12)
    assert late.rounds == turns // members
