"""The average: accumulated in float64, rounded once, BatchNorm folded exactly, wherever it is asked for."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import latephase
from cases import EVERY, PAIRS, Case, assert_same, plain_tensors, run, run_reference, tensors, train
from latephase.reference import Reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


class Counter(nn.Module):
    """A weight with no gradient but its own value, so that an SGD step of rate 1 sets it to anything."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return (self.weight * x).sum()


def members_with(values: torch.Tensor) -> latephase.LatePhase:
    """A phase whose member k holds values[k]: from zero, a step of rate 1 along the gradient -values[k]."""
    model = Counter(values.shape[1]).to(values.dtype)
    late = latephase.LatePhase(model, members=len(values), weights=["full"])
    optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=1.0))
    late.start()
    for value in values:
        optimizer.zero_grad()
        model(-value).backward()
        optimizer.step()
    for k, value in enumerate(values):
        with late.member(k):
            assert torch.equal(model.weight, value)
    return late


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [2, 3, 7, 10])
def test_the_mean_is_taken_in_float64_and_rounded_once(dtype: torch.dtype, count: int) -> None:
    values = (torch.randn(count, 500, dtype=torch.float64) * 3 + 100).to(dtype)
    late = members_with(values)
    expected = values.double().mean(0).to(dtype)
    average = late.averaged_state_dict()["weight"]
    assert average.dtype == dtype
    if dtype == torch.float64:  # the order of a float64 sum is the library's own choice
        torch.testing.assert_close(average, expected, rtol=1e-15, atol=0)
        return
    assert torch.equal(average, expected)
    naive = torch.zeros(500, dtype=dtype)
    for value in values:
        naive += value / count
    if count > 2:  # halves are exact
        assert not torch.equal(naive, expected)  # the law does differ from averaging in the weights' own type


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [3, 7, 10])
def test_equal_members_average_to_exactly_themselves(dtype: torch.dtype, count: int) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 50), nn.BatchNorm1d(50), nn.BatchNorm1d(50, affine=False), nn.Linear(50, 3))
    model.to(dtype)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) * 3 + 0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    late = latephase.LatePhase(model, members=count)
    late.start()
    assert_same(dict(late.averaged_state_dict()), before)
    model.eval()
    assert_same(tensors(model), before)


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_the_averaged_models_output_equals_the_references(case: Case) -> None:
    model, _, late = run(case, 8)
    average = run_reference(case, 8).average()
    (batch,) = case.batches(1, size=6, first=99)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(batch[0]), average.eval()(batch[0]), rtol=1e-11, atol=1e-11)
        with late.average():
            assert_same(tensors(model), tensors(model))
    assert late.turn == 8 % 3


@pytest.mark.parametrize(
    ("late_names", "affine"),
    [(["weight", "bias"], True), (["weight"], True), (["bias"], True), ([], True), ([], False)],
)
def test_the_fold_gives_the_mean_of_the_layers_outputs(late_names: list[str], affine: bool) -> None:
    """One BatchNorm reproduces the mean of the K members' eval outputs, whichever of its weights are late."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(6, affine=affine)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.norm(x)).square()

    model = Net().double()
    patterns = [f"norm.{name}" for name in late_names] + ["head.bias"]
    late = latephase.LatePhase(model, members=4, weights=[latephase.Parameters(*patterns)])
    optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.3))
    late.start()
    for index in range(8):
        x = torch.randn(5, 6, dtype=torch.float64) * (1 + index) + index
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()
    model.eval()
    probe = torch.randn(7, 6, dtype=torch.float64)
    outputs = []
    for k in range(4):
        with late.member(k):
            outputs.append(model.norm(probe).detach())
    spread = torch.stack(outputs).std(0).max()
    assert spread > 1e-2
    torch.testing.assert_close(model.norm(probe).detach(), torch.stack(outputs).mean(0), rtol=0, atol=1e-12)
    for kind in ("weight", "bias"):  # a shared affine weight stays the base weights' own
        if affine and not late_names:
            with late.member(0):
                own = getattr(model.norm, kind).detach().clone()
            assert torch.equal(getattr(model.norm, kind), own)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_predict_stacks_the_members_outputs_in_eval_mode(case: Case) -> None:
    model, _, late = run(case, 7)
    judge = run_reference(case, 7)
    (batch,) = case.batches(1, size=5, first=50)
    model.train()
    before = tensors(model)
    outputs = late.predict(batch[0])
    assert model.training
    assert all(m.training for m in model.modules())
    assert_same(tensors(model), before)
    assert not outputs.requires_grad
    with torch.no_grad():
        expected = torch.stack([member.eval()(batch[0]) for member in judge.members])
    torch.testing.assert_close(outputs, expected, rtol=1e-11, atol=1e-11)


def test_the_fold_of_a_batchnorm_without_a_shift() -> None:
    """What a shift would take up goes into the running mean."""
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    model[0].register_parameter("bias", None)  # as `bias=False` does, which PyTorch 2.9 does not know yet
    late = latephase.LatePhase(model, members=3)
    optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.3))
    late.start()
    for index in range(6):
        optimizer.zero_grad()
        model(torch.randn(4, 5, dtype=torch.float64) + index).square().mean().backward()
        optimizer.step()
    model.eval()
    probe, outputs = torch.randn(7, 5, dtype=torch.float64), []
    for k in range(3):
        with late.member(k):
            outputs.append(model[0](probe).detach())
    torch.testing.assert_close(model[0](probe).detach(), torch.stack(outputs).mean(0), rtol=0, atol=1e-12)


def test_predict_takes_any_arguments_and_returns_any_tree() -> None:
    class Tree(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

        def forward(self, x, *, scale):
            h = self.norm(x)
            return {"logits": self.head(h) * scale, "more": (h, [h.sum(1)]), "none": None}

    model = Tree()
    late = latephase.LatePhase(model, members=3)
    late.start()
    model.eval()
    out = late.predict(torch.randn(5, 4), scale=2.0)
    assert out["logits"].shape == (3, 5, 2)
    assert out["more"][0].shape == (3, 5, 4)
    assert out["more"][1][0].shape == (3, 5)
    assert out["none"] is None
    assert not model.training


def test_member_and_average_pin_what_is_in_the_model() -> None:
    case = Case()
    model, _, late = run(case, 4)
    turn, average = tensors(model), late.averaged_state_dict()
    judge = run_reference(case, 4)
    with late.member(2):
        assert_same(tensors(model), tensors(judge.members[2]), 1e-12)
        with late.average():
            assert_same(dict(model.state_dict()), dict(average))
            assert torch.equal(model.bn1.weight, average["bn1.weight"])
            with late.member(0):
                assert_same(tensors(model), tensors(judge.members[0]), 1e-12)
        model.eval()  # a pinned member stays, whatever the mode
        assert torch.equal(model.bn1.weight, judge.members[2].bn1.weight)
        model.train()
    assert_same(tensors(model), turn)
    with pytest.raises(ZeroDivisionError), late.member(1):
        raise ZeroDivisionError
    assert_same(tensors(model), turn)
    with pytest.raises(latephase.LatePhaseValueError, match="3"), late.member(3):
        pass
    assert_same(tensors(model), turn)


@given(seed=st.integers(0, 1000), row=st.sampled_from([c for c in EVERY if c.model in ("bn_cnn", "ln_mlp")]))
def test_the_average_is_that_of_any_members(seed: int, row: Case) -> None:
    """With any noise, the library's average of its members is the reference's average of the same members."""
    case = replace(row, start=0)
    model = case.plain()
    late = latephase.LatePhase(model, members=3, weights=case.weights(), noise=0.7, seed=seed)
    late.start()
    theirs = case.factored()
    judge = Reference(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1), case.late_names(), 3)
    judge.start()
    for k, member in enumerate(judge.members):
        with late.member(k):
            values = tensors(model)
        for name, parameter in member.named_parameters():
            parameter.data.copy_(values[name])
    assert_same(dict(late.averaged_state_dict()), plain_tensors(judge.average()), 1e-12)


def test_weight_averaging_over_time_is_fed_with_the_average() -> None:
    """torch's AveragedModel, made and updated while the average is in the model: the mean of the averages."""
    case = Case(model="ln_mlp")
    model, optimizer, late = run(case, 3)
    with late.average():
        swa = torch.optim.swa_utils.AveragedModel(model)
    seen = []
    for first in (6, 9, 12):
        train(case, model, optimizer, case.batches(3, first=first))
        with late.average():
            swa.update_parameters(model)
        seen.append(late.averaged_state_dict())
    for name, tensor in swa.module.state_dict().items():
        mean = torch.stack([state[name] for state in seen]).mean(0)
        torch.testing.assert_close(tensor, mean, rtol=1e-12, atol=1e-12)
