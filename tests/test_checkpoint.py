"""Save, resume, continue equals uninterrupted training: at every turn, in every order, in a new process."""

import io
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import latephase
from cases import PAIRS, Case, assert_same, tensors, train

TURNS = 7


class Net(nn.Module):
    """BatchNorm and dropout: what a resumed run must have right are statistics, moments and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.drop = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.body, self.norm2, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.norm2(self.body(self.drop(self.norm(self.stem(x)).relu()))))


class Run:
    """A training run of the careful kind: Adam, a schedule per minibatch, a gradient scaler, dropout, noise."""

    def __init__(self, members: int = 3, weights=("norm", "head"), seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = Net()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.late = latephase.LatePhase(self.model, members, weights, noise=0.1, base_gradient="mean")
        self.late.optimizer(self.optimizer)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=2, gamma=0.8)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        self.index = 0

    def minibatches(self, count: int) -> None:
        for _ in range(count):
            if self.index == 2:
                self.late.start()
            generator = torch.Generator().manual_seed(self.index)
            x, y = torch.randn(6, 5, generator=generator), torch.randint(3, (6,), generator=generator)
            self.optimizer.zero_grad()
            self.scaler.scale(F.cross_entropy(self.model(x), y)).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            self.index += 1

    PARTS = ("model", "optimizer", "late", "scheduler", "scaler")

    def save(self) -> dict:
        parts = {name: getattr(self, name).state_dict() for name in self.PARTS}
        return {**parts, "rng": torch.get_rng_state(), "index": self.index}

    def load(self, saved: dict, order=PARTS) -> "Run":
        for name in order:
            getattr(self, name).load_state_dict(saved[name])
        torch.set_rng_state(saved["rng"])
        self.index = saved["index"]
        return self

    def outcome(self) -> dict[str, torch.Tensor]:
        """Everything there is at the end: the average, each member, the moments."""
        held = {f"average.{n}": t for n, t in self.late.averaged_state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            held.update({f"state.{index}.{key}": torch.as_tensor(value) for key, value in state.items()})
        if self.late.phase == "late":
            for k in range(self.late.members):
                with self.late.member(k):
                    held.update({f"{k}.{n}": t for n, t in tensors(self.model).items()})
        return held


def through_a_file(saved: dict) -> dict:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, torch.Tensor]:
    run = Run()
    run.minibatches(2 + TURNS)
    return run.outcome()


@pytest.mark.parametrize("cut", range(2 + TURNS))
def test_resuming_at_every_turn_equals_the_uninterrupted_run(cut: int, uninterrupted) -> None:
    first = Run()
    first.minibatches(cut)
    saved = through_a_file(first.save())
    second = Run(seed=123).load(saved)
    assert (second.late.phase, second.late.turn) == ("late", (cut - 2) % 3) if cut > 2 else ("attached", 0)
    second.minibatches(2 + TURNS - cut)
    assert_same(second.outcome(), uninterrupted)
    torch.set_rng_state(saved["rng"])  # saving did not disturb the run that was saved
    first.minibatches(2 + TURNS - cut)
    assert_same(first.outcome(), uninterrupted)


@pytest.mark.parametrize("order", list(itertools.permutations(("model", "optimizer", "late"))), ids="-".join)
@pytest.mark.parametrize("cut", [1, 2, 5, 6])
def test_the_order_of_loading_does_not_matter(order, cut: int, uninterrupted) -> None:
    first = Run()
    first.minibatches(cut)
    saved = through_a_file(first.save())
    second = Run(seed=9).load(saved, (*order, "scheduler", "scaler"))
    second.minibatches(2 + TURNS - cut)
    assert_same(second.outcome(), uninterrupted)


@pytest.mark.parametrize("target", ["attached", "late", "evaluating", "later"])
def test_any_phase_of_the_same_kind_can_resume(target: str, uninterrupted) -> None:
    first = Run()
    first.minibatches(6)
    saved = through_a_file(first.save())
    second = Run(seed=5)
    second.minibatches({"attached": 0, "late": 4, "evaluating": 4, "later": 8}[target])
    if target == "evaluating":
        second.model.eval()
    second.load(saved)
    second.model.train()
    second.minibatches(2 + TURNS - 6)
    assert_same(second.outcome(), uninterrupted)


def test_saving_in_eval_mode_or_inside_a_context_is_the_same(uninterrupted) -> None:
    first = Run()
    first.minibatches(6)
    first.model.eval()
    in_eval = through_a_file(first.save())
    first.model.train()
    with first.late.member(1):
        pinned = through_a_file(first.save())
    for saved in (in_eval, pinned):
        second = Run(seed=5).load(saved)
        second.minibatches(2 + TURNS - 6)
        assert_same(second.outcome(), uninterrupted)


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_every_row_of_the_table_resumes_in_the_middle_of_a_round(case: Case) -> None:
    case = replace(case, dtype=torch.float32)

    def begin():
        model, optimizer, late = case.attach()
        train(case, model, optimizer, case.batches(case.start))
        late.start()
        train(case, model, optimizer, case.batches(4, first=case.start))
        return model, optimizer, late

    model, optimizer, late = begin()
    saved = through_a_file({"m": model.state_dict(), "o": optimizer.state_dict(), "l": late.state_dict()})
    again, theirs, phase = case.attach()
    phase.load_state_dict(saved["l"])
    again.load_state_dict(saved["m"])
    theirs.load_state_dict(saved["o"])
    assert_same(tensors(again), tensors(model))
    for m, o in ((model, optimizer), (again, theirs)):
        train(case, m, o, case.batches(4, first=case.start + 4))
    assert_same(tensors(again), tensors(model))
    assert_same(dict(phase.averaged_state_dict()), dict(late.averaged_state_dict()))


SCRIPT = """
import sys, torch
from test_checkpoint import Run
torch.set_num_threads(1)
run = Run(seed=77).load(torch.load(sys.argv[1], weights_only=True))
run.minibatches(int(sys.argv[2]))
torch.save(run.outcome(), sys.argv[3])
"""


def test_a_new_process_resumes(tmp_path: Path, uninterrupted) -> None:
    first = Run()
    first.minibatches(6)
    torch.save(first.save(), tmp_path / "saved.pt")
    subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, tmp_path / "saved.pt", str(TURNS - 4), tmp_path / "end.pt"],
        check=True,
        cwd=Path(__file__).parent,
        timeout=240,
    )
    assert_same(torch.load(tmp_path / "end.pt", weights_only=True), uninterrupted)


def test_the_state_is_a_copy_of_tensors_and_plain_values() -> None:
    run = Run()
    run.minibatches(5)
    saved = run.late.state_dict()
    frozen = through_a_file({"late": saved})["late"]
    run.minibatches(3)

    def compare(a, b) -> None:
        assert type(a) is type(b)
        assert isinstance(a, torch.Tensor | int | float | str | bool | type(None) | dict | list | tuple)
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b)
            assert not a.requires_grad
        elif isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a:
                compare(a[key], b[key])
        elif isinstance(a, list | tuple):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                compare(x, y)
        else:
            assert a == b

    compare(dict(saved), dict(frozen))


@pytest.mark.parametrize("phase", ["attached", "late"])
def test_a_checkpoint_of_another_k_or_of_other_sites_is_refused(phase: str) -> None:
    run = Run()
    run.minibatches(5 if phase == "late" else 1)
    saved = run.late.state_dict()
    if phase == "late":
        wrong = [(Run(members=4), "4"), (Run(weights=["norm"]), "head"), (Run(weights=["head"]), "norm")]
    else:
        wrong = [(Run(members=4), "4")]
    for other, names in wrong:
        other.minibatches(1)
        before = other.outcome()
        with pytest.raises(latephase.LatePhaseValueError, match=names):
            other.late.load_state_dict(saved)
        assert other.late.phase == "attached"
        assert_same(other.outcome(), before)


def test_rubbish_is_refused() -> None:
    run = Run()
    for rubbish in ({}, {"phase": "late"}, run.model.state_dict(), {"format": 99, "phase": "late"}):
        with pytest.raises(latephase.LatePhaseValueError):
            run.late.load_state_dict(rubbish)
    assert run.late.phase == "attached"


@pytest.mark.parametrize("start", [False, True])
def test_an_optimizer_that_holds_its_weights_in_another_order_is_refused(start: bool) -> None:
    """Torch would give one weight's moments to another; factors come last where the optimizer was there first."""

    def phase(first: bool) -> tuple[latephase.LatePhase, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        optimizer = torch.optim.Adam(model.parameters()) if first else None
        late = latephase.LatePhase(model, members=2, weights="rank-one")
        optimizer = late.optimizer(optimizer or torch.optim.Adam(model.parameters()))
        return late, optimizer

    late, _ = phase(first=True)
    if start:
        late.start()
    saved = late.state_dict()
    same, _ = phase(first=True)
    same.load_state_dict(saved)
    assert same.phase == late.phase
    other, _ = phase(first=False)
    message = r"position 0 of optimizer 0 \(Adam\) was .*know their weights by position"
    with pytest.raises(latephase.LatePhaseValueError, match=message):
        other.load_state_dict(saved)
    assert other.phase == "attached"
    older = {key: value for key, value in saved.items() if key != "parameters"}
    same.load_state_dict(older)


def test_a_start_after_resuming_is_the_end_of_the_resumption() -> None:
    """What the model loads next is taken over by all members, as at any time after the start."""
    model = Net()
    late = latephase.LatePhase(model, members=2)
    late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    late.load_state_dict(late.state_dict())
    late.start()
    values = {name: value + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(values)
    for k in range(2):
        with late.member(k):
            assert_same(tensors(model), values)
