"""BatchNorm of all members at once: both ways of it equal the definition, and keep no more than plain training."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import latephase
from cases import Case, assert_matches, run_reference, train
from latephase import grouped_norm
from latephase.experiments.models.wide_resnet import WideResNet
from latephase.grouped_norm import GroupedNorm, normalise
from test_parallel import chunks

WAYS = {"one by one": grouped_norm._OneByOne, "together": grouped_norm._Together}


CHOSEN = grouped_norm._way


def only(name: str):
    """The choice of a way, of which one is ruled out; the other is right for every layout."""
    return (lambda x: WAYS[name]) if name == "together" else CHOSEN


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> str:
    monkeypatch.setattr(grouped_norm, "_way", only(request.param))
    return request.param


def draw(shape: tuple[int, ...], dtype=torch.float64, affine: bool = True) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(sum(shape))

    def numbers(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    members, channels = shape[0], shape[2]
    x = (3 + 2 * numbers(*shape)).requires_grad_()
    own = [numbers(members, channels).requires_grad_() for _ in range(2)] if affine else [None, None]
    return x, *own, numbers(members, channels), numbers(members, channels).square()


def in_one_pass(x, weight, bias, mean, var, momentum=0.1, eps=1e-5) -> Tensor:
    def one(*tensors):
        return F.batch_norm(*tensors, True, momentum, eps)

    dims = tuple(None if tensor is None else 0 for tensor in (x, mean, var, weight, bias))
    with GroupedNorm():
        return torch.vmap(one, in_dims=dims)(x, mean, var, weight, bias)


def laid_out(x: Tensor, order: str) -> Tensor:
    """The same values in memory as convolutions leave them: shared ones, and those that are each member's own."""
    if order == "channels last" and x.ndim == 5:
        return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).view(x.shape)
    return x.movedim(0, 1).contiguous().movedim(1, 0) if order == "members beside channels" else x


@pytest.mark.parametrize("name", WAYS)
@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(2, 5), st.integers(1, 4)),
    rest=st.lists(st.integers(1, 4), max_size=3),
    order=st.sampled_from(["samples first", "channels last", "members beside channels"]),
    affine=st.booleans(),
    statistics=st.booleans(),
)
def test_it_is_each_members_own_batch_norm(name, shape, rest, order, affine, statistics) -> None:
    x, weight, bias, mean, var = draw((*shape, *rest), affine=affine)
    x = laid_out(x.detach(), order).requires_grad_()
    mean, var = (mean, var) if statistics else (None, None)
    copies = [None if t is None else t.clone() for t in (mean, var)]
    grouped_norm._way = only(name)
    try:
        found = in_one_pass(x, weight, bias, mean, var)
        leaves = [t for t in (x, weight, bias) if t is not None]
        towards = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view(found.shape).sin()
        gradients = torch.autograd.grad(found, leaves, towards)
    finally:
        grouped_norm._way = CHOSEN
    rows = [[None if t is None else t[k] for t in (x, *copies, weight, bias)] for k in range(shape[0])]
    expected = torch.stack([F.batch_norm(*row, True, 0.1, 1e-5) for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, normalise(x, weight, bias, 1e-5), rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, leaves, towards), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    for ours, theirs in zip((mean, var), copies, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_shift_far_from_zero_costs_no_digits(way: str) -> None:
    x, weight, bias, *_ = draw((3, 8, 2, 4), dtype=torch.float32)
    far = (x + 1000).detach().requires_grad_()
    found = in_one_pass(far, weight, bias, None, None)
    expected = normalise(far.double(), weight.double(), bias.double(), 1e-5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_activations_are_summed_in_float32(way: str, dtype: torch.dtype) -> None:
    x, weight, bias, mean, var = draw((2, 16, 3, 5, 5), dtype=torch.float32)
    half = x.detach().to(dtype).requires_grad_()
    found = in_one_pass(half, weight, bias, mean.clone(), var.clone())
    rows = [F.batch_norm(*(t[k] for t in (half, mean, var, weight, bias)), True, 0.1, 1e-5) for k in range(2)]
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.stack(rows), rtol=2e-2, atol=2e-2)
    grads = [torch.autograd.grad(out, [half, weight, bias], torch.ones_like(out)) for out in (found, torch.stack(rows))]
    for ours, theirs in zip(*grads, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=5e-2)


def test_gradients_of_gradients(way: str) -> None:
    x, weight, bias, *_ = draw((2, 4, 2))

    def penalty(out: Tensor) -> tuple[Tensor, ...]:
        (slope,) = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, weight, bias])

    for ours, theirs in zip(
        penalty(in_one_pass(x, weight, bias, None, None)), penalty(normalise(x, weight, bias, 1e-5)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


ROWS = [Case("bn_cnn"), Case("wrn_10_1", "head"), Case("bn_cnn", "rank-one", "adamw"), Case("wrn_10_1", "full", "sgd")]


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_a_round_equals_the_reference(way: str, case: Case) -> None:
    model, optimizer, late = case.attach()
    train(case, model, optimizer, case.batches(case.start))
    late.start()
    for x, y in chunks(case, 2):
        optimizer.zero_grad()
        F.cross_entropy(late.parallel(x), y).backward()
        optimizer.step()
    assert_matches(late, run_reference(case, 6), 1e-9)


def test_one_value_a_channel_is_still_torchs_error() -> None:
    late = latephase.LatePhase(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), members=2)
    late.start()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        late.parallel(torch.randn(2, 3))


class Fused(nn.BatchNorm2d):
    """A layer that calls BatchNorm itself, as timm's with an activation do."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps).relu()


def test_layers_of_ones_own_and_frozen_ones_are_the_loops() -> None:
    def phase() -> latephase.LatePhase:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), Fused(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        model = model.append(nn.Linear(4 * 16, 2)).double()
        model[3].eval()
        late = latephase.LatePhase(model, members=2, noise=0.1)
        late.start()
        return late

    one, other = phase(), phase()
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    together = one.parallel(x)
    for k, part in enumerate(x.split(3)):
        with other.member(k):
            torch.testing.assert_close(together[3 * k : 3 * k + 3], other.model(part))
    for name, stack in one.state_dict()["values"].items():
        torch.testing.assert_close(stack, other.state_dict()["values"][name], msg=name)


def kept(work) -> int:
    """Bytes that autograd keeps for the backward, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = work()
    del out
    return sum(storages.values())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_pass_keeps_what_plain_training_on_as_many_samples_keeps(way: str, layout: torch.memory_format) -> None:
    x = torch.randn(12, 3, 16, 16).contiguous(memory_format=layout)
    plain = WideResNet(10, 1, classes=10).to(memory_format=layout)
    late = latephase.LatePhase(WideResNet(10, 1, classes=10).to(memory_format=layout), members=3)
    late.start()
    own = sum(stack.nbytes for stack in late.state_dict()["values"].values())
    assert kept(lambda: late.parallel(x)) <= 1.01 * kept(lambda: plain(x)) + own
