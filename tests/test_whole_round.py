"""Round: K turns and one pass are the same training; "auto" keeps the faster of the two."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import latephase
from cases import Case, assert_matches, assert_same, run_reference, train
from latephase import grouped_norm
from test_parallel import chunks, error_state

ROWS = [Case(), Case("ln_mlp", "full", "adamw", start=0), Case("bn_cnn", "rank-one", gamma="mean")]


class Clock:
    """Seconds that pass as told: `loop` in a round of turns, `parallel` in one pass."""

    def __init__(self, **costs: float) -> None:
        self.now, self.calls, self.costs = 0.0, 0, costs

    def __call__(self) -> float:
        """One pass goes first, then the turns: two readings each."""
        self.calls += 1
        if self.calls % 2 == 0:
            self.now += self.costs["parallel" if self.calls % 4 == 2 else "loop"]
        return self.now


def started(case: Case):
    model, optimizer, late = case.attach()
    train(case, model, optimizer, case.batches(case.start))
    late.start()
    return model, optimizer, late


@pytest.mark.parametrize("mode", ["auto", "loop", "parallel"])
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_every_mode_equals_the_reference(case: Case, mode: str) -> None:
    _, optimizer, late = started(case)
    step = latephase.Round(late, optimizer, F.cross_entropy, mode)
    losses = [float(step(x, y)) for x, y in chunks(case, 3)]
    assert (late.rounds, late.turn) == (3, 0)
    assert all(loss > 0 for loss in losses)
    assert_matches(late, run_reference(case, 9), 1e-9)


@pytest.mark.parametrize(("loop", "parallel", "kept"), [(1.0, 2.0, "loop"), (2.0, 1.0, "parallel")])
def test_auto_keeps_the_faster(loop: float, parallel: float, kept: str) -> None:
    case = Case(start=0)
    _, optimizer, late = started(case)
    clock = Clock(loop=loop, parallel=parallel)
    step = latephase.Round(late, optimizer, F.cross_entropy, trials=2, clock=clock)
    for done, (x, y) in enumerate(chunks(case, 7)):
        assert step.mode == (None if done < 6 else kept)
        step(x, y)
    assert step.times == {"loop": [loop] * 3, "parallel": [parallel] * 3}
    assert_matches(late, run_reference(case, 21), 1e-9)


def test_the_loss_is_the_mean_of_the_minibatches() -> None:
    case = Case(start=0)
    (x, y), *_ = chunks(case, 1)
    losses = {}
    for mode in ("loop", "parallel"):
        _, optimizer, late = started(case)
        losses[mode] = latephase.Round(late, optimizer, F.cross_entropy, mode)(x, y)
        assert not losses[mode].requires_grad
    expected = [F.cross_entropy(case.plain()(part), its) for part, its in zip(x.split(4), y.split(4), strict=True)]
    for loss in losses.values():
        torch.testing.assert_close(loss, torch.stack(expected).mean())


class Recurrent(nn.Module):
    """BatchNorm, whose statistics move, before what vmap cannot run."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.lstm, self.head = nn.BatchNorm1d(3), nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.lstm(self.norm(x).unsqueeze(1))[0][:, 0])


def test_auto_takes_turns_where_one_pass_cannot_be_had() -> None:
    def attach():
        torch.manual_seed(0)
        model = Recurrent().double()
        late = latephase.LatePhase(model, members=2)
        optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        late.start()
        return late, optimizer

    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,))
    states = []
    for mode in ("auto", "loop"):
        late, optimizer = attach()
        step = latephase.Round(late, optimizer, F.cross_entropy, mode)
        step(x, y)
        assert step.mode == "loop"
        states.append(error_state(late, late.model))
    assert_same(*states)


def test_auto_takes_turns_where_memory_ends(monkeypatch) -> None:
    def full(x):
        raise torch.OutOfMemoryError("no memory")

    case = Case(start=0)
    _, optimizer, late = started(case)
    step = latephase.Round(late, optimizer, F.cross_entropy)
    monkeypatch.setattr(grouped_norm, "_way", full)
    (x, y), *_ = chunks(case, 1)
    step(x, y)
    monkeypatch.undo()
    assert step.mode == "loop"
    assert_matches(late, run_reference(case, 3), 1e-11)


def test_arguments_and_keyword_arguments() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x, scale):
            return self.head(x * scale)

    seen = []
    x, scale, y = torch.randn(4, 3), torch.rand(4, 1), torch.randint(2, (4,))
    for inputs in ((x, scale), {"scale": scale, "x": x}):
        torch.manual_seed(0)
        late = latephase.LatePhase(Scaled(), members=2, weights=["head"])
        optimizer = late.optimizer(torch.optim.SGD(late.model.parameters(), lr=0.1))
        late.start()
        latephase.Round(late, [optimizer], F.cross_entropy, "loop")(inputs, y)
        seen.append(error_state(late, late.model))
    assert_same(*seen)


def test_bad_input_is_named() -> None:
    case = Case(start=0)
    model, optimizer, late = started(case)
    with pytest.raises(latephase.LatePhaseValueError, match=r"'fast'.*'auto'"):
        latephase.Round(late, optimizer, F.cross_entropy, "fast")
    with pytest.raises(latephase.LatePhaseValueError, match="trials: 0"):
        latephase.Round(late, optimizer, F.cross_entropy, trials=0)
    (x, y), *_ = chunks(case, 1)
    before = error_state(late, model)
    for mode in ("auto", "loop", "parallel"):
        step = latephase.Round(late, optimizer, F.cross_entropy, mode)
        with pytest.raises(latephase.LatePhaseValueError, match="11 samples"):
            step(x[:11], y[:11])
    assert_same(error_state(late, model), before)
    train(case, model, optimizer, case.batches(1))
    with pytest.raises(latephase.LatePhaseError, match=r"middle of a round \(turn 1 of 3\)"):
        latephase.Round(late, optimizer, F.cross_entropy, "loop")(x, y)


@pytest.mark.parametrize("mode", ["auto", "loop", "parallel"])
def test_members_that_cannot_take_turns_are_refused_before_the_first_turn(mode) -> None:
    """And "auto" has decided nothing by it."""
    case = Case(start=0)
    model, optimizer, late = started(case)
    other = late.optimizer(torch.optim.SGD([next(iter(model.parameters()))], lr=0.1))
    step = latephase.Round(late, optimizer, F.cross_entropy, mode)
    (x, y), *_ = chunks(case, 1)
    before = error_state(late, model)
    for place in (late.member(0), late.average()):
        with place, pytest.raises(latephase.LatePhaseError, match=r"Round trains.* pinned"):
            step(x, y)
    model.eval()
    with pytest.raises(latephase.LatePhaseError, match="eval mode"):
        step(x, y)
    model.train()
    other.step()
    with pytest.raises(latephase.LatePhaseError, match=r"turn 0 of 3, after a step of SGD"):
        step(x, y)
    assert_same(error_state(late, model), before)
    assert step.mode == (None if mode == "auto" else mode)


def test_a_round_before_the_start_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    late = latephase.LatePhase(model, members=2)
    optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    step = latephase.Round(late, optimizer, F.cross_entropy, "loop")
    with pytest.raises(latephase.LatePhaseError, match=r"Round before start\(\)"):
        step(torch.randn(4, 3), torch.randint(2, (4,)))


def test_a_round_that_is_refused_is_no_resumption() -> None:
    """What the model loads next counts, as at any other time."""
    case = Case()
    model, optimizer, late = started(case)
    train(case, model, optimizer, case.batches(3))
    x, y = next(iter(chunks(case, 1)))
    with pytest.raises(latephase.LatePhaseValueError, match="cannot be split"):
        latephase.Round(late, optimizer, F.cross_entropy)(x[:-1], y[:-1])
    average = late.averaged_state_dict()
    model.load_state_dict(average)
    with late.member(1):
        assert_same({name: dict(model.state_dict())[name] for name in average}, dict(average))
        assert_same(dict(model.named_parameters()), {n: average[n] for n, _ in model.named_parameters()})


def test_a_single_member_keeps_its_moments_from_turns_to_passes() -> None:
    case = Case("ln_mlp", "full", start=0, members=1)
    model, optimizer, late = started(case)
    train(case, model, optimizer, case.batches(2))
    step = latephase.Round(late, optimizer, F.cross_entropy, "parallel")
    for x, y in case.batches(2, first=2):
        step(x, y)
    assert_matches(late, run_reference(case, 4), 1e-9)


def test_one_pass_with_frozen_members_is_refused() -> None:
    """No gradient would reach a member, so that the step could not tell the round from a turn."""
    case = Case("ln_mlp", "head", start=0)
    _, _, late = started(case)
    for weight in late.late_parameters():
        weight.requires_grad_(False)
    with pytest.raises(latephase.LatePhaseError, match="all frozen"):
        late.parallel(next(iter(chunks(case, 1)))[0])
