"""Numbers at their limits, as one table: what each does to members, base weights, average and collapse."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import latephase
from latephase import LatePhaseError
from latephase.averaging import NormFold, exact_mean
from latephase.reference import Reference
from laws import difference, every_member, tensors
from random_models import Architecture, loss

NET = Architecture("vector", ("bn", "tanh"), "", (), torch.float64)
K = 3
BIG = torch.finfo(torch.float64).max


def started(members: int = K, dtype: torch.dtype = torch.float64, net: Architecture = NET, weights=("norm", "head")):
    model = net.build(0).to(dtype)
    late = latephase.LatePhase(model, members, list(weights))
    optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    late.start()
    return model, late, optimizer


def turn(model: nn.Module, optimizer: torch.optim.Optimizer, index: int, factor: float = 1.0, spoil=None) -> None:
    x, y = NET.batch(4, index)
    optimizer.zero_grad()
    (loss(model(x.to(next(model.parameters()).dtype)), y) * factor).backward()
    if spoil is not None:
        spoil(model)
    optimizer.step()


def uncounted(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the counts of batches: a BatchNorm counts one before it refuses it."""
    return {name: value for name, value in values.items() if "num_batches" not in name}


def finite(values: dict[str, Tensor]) -> dict[str, bool]:
    return {name: bool(value.isfinite().all()) for name, value in values.items()}


def one_gradient(value: float) -> Callable[[nn.Module], None]:
    def spoil(model: nn.Module) -> None:
        model.head.weight.grad[0, 0] = value

    return spoil


# A minibatch that is not finite, in one member's turn.


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("last", [False, True])
def test_without_a_scaler_a_bad_loss_reaches_its_member_and_at_the_rounds_end_the_base(
    factor: float, last: bool
) -> None:
    """As in plain training, where it reaches every weight at once. Algorithm 1 says as much: the sum holds it."""
    model, late, optimizer = started()
    bad = K - 1 if last else 1
    for index in range(K):
        turn(model, optimizer, index, factor if index == bad else 1.0)
        if index < K - 1:
            assert finite(dict(model.named_parameters()))["stem.weight"]
    for k, member in enumerate(every_member(late)):
        ours = {name: ok for name, ok in finite(member).items() if name in late.late_names()}
        assert all(ours.values()) == (k != bad)
    assert not finite(dict(model.named_parameters()))["stem.weight"]
    judge = Reference(NET.build(0), torch.optim.SGD(NET.build(0).parameters(), lr=0.05), [], 1)
    judge.start()
    x, y = NET.batch(4, 0)
    assert not judge.step(lambda member: loss(member(x), y) * factor)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("statistics", ["fold", "mean"])
def test_collapse_names_the_member_and_the_tensor_that_spoil_the_average(value: float, statistics: str) -> None:
    model, late, optimizer = started()
    for index in range(K + 1):
        turn(model, optimizer, index, spoil=one_gradient(value) if index == 1 else None)
    before, turns = every_member(late), late.turn
    with pytest.raises(
        LatePhaseError, match=r"'head.weight' is NaN or infinite in member\(s\) 1 of 3.*nothing was changed"
    ):
        late.collapse(statistics)
    assert late.phase == "late"
    assert late.turn == turns
    for member, then in zip(every_member(late), before, strict=True):
        assert difference(member, then) == ""
    assert all(ok for name, ok in finite(before[0]).items())  # a member of its own weight alone is spoilt


def test_a_state_from_before_brings_a_spoilt_run_back() -> None:
    model, late, optimizer = started()
    for index in range(4):
        turn(model, optimizer, index)
    saved = model.state_dict(), late.state_dict(), optimizer.state_dict()
    turn(model, optimizer, 4, float("nan"))
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[2])
    late.load_state_dict(saved[1])
    turn(model, optimizer, 5)
    assert all(finite(dict(late.collapse().state_dict())).values())


def test_with_a_scaler_the_turn_is_repeated_and_nobody_is_spoilt() -> None:
    model, late, optimizer = started(dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    turns = []
    for index in range(7):
        x, y = NET.batch(4, index)
        optimizer.zero_grad()
        before = tensors(model)
        scaler.scale(loss(model(x.float()), y) * (float("nan") if index == 1 else 1.0)).backward()
        scaler.step(optimizer)
        if index == 1:
            weights = dict(model.named_parameters())
            assert difference({n: p.detach() for n, p in weights.items()}, {n: before[n] for n in weights}) == ""
        scaler.update()
        turns.append(late.turn)
    assert turns == [1, 1, 2, 0, 1, 2, 0]
    assert all(finite(dict(late.collapse().state_dict())).values())


def test_weights_that_are_infinite_on_purpose_stay_so() -> None:
    """A mask that is a Parameter: every member has the same infinity, which is its mean."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = nn.Module()
        model.mask = nn.Parameter(torch.tensor([0.0, -torch.inf, torch.inf], dtype=dtype), requires_grad=False)
        late = latephase.LatePhase(model, K, "full")
        late.start()
        assert late.collapse().mask.tolist() == [0.0, -torch.inf, torch.inf]


# Means.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 3, 128])
def test_the_mean_of_equal_numbers_is_that_number_at_every_size(dtype: torch.dtype, count: int) -> None:
    info = torch.finfo(dtype)
    tiny = torch.tensor([info.smallest_normal], dtype=dtype)
    numbers = torch.tensor(
        [0.0, info.max, -info.max, info.smallest_normal, info.eps, torch.inf, -torch.inf], dtype=dtype
    )
    numbers = torch.cat([numbers, tiny / 2, tiny * info.eps])  # denormals, of which the last is the smallest
    assert bool((numbers[-2:] != 0).all())
    assert torch.equal(exact_mean(numbers.repeat(count, 1)).to(dtype), numbers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_means_near_the_largest_and_the_smallest_numbers(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    least = torch.tensor(info.smallest_normal, dtype=dtype) * info.eps
    stack = torch.stack([torch.tensor([info.max, info.max, 0.0], dtype=dtype)] * 2)
    stack[1, 1], stack[:, 2] = -info.max, least * torch.tensor([1, 3])
    assert exact_mean(stack).to(dtype).tolist() == [info.max, 0.0, 2 * least.item()]


@pytest.mark.parametrize(("members", "mean"), [((BIG, -BIG), 0.0), ((BIG, BIG / 2, -BIG), BIG / 6)])
def test_a_mean_in_float64_does_not_overflow_on_its_way(members: tuple[float, ...], mean: float) -> None:
    found = exact_mean(torch.tensor(members, dtype=torch.float64)).item()
    assert found == pytest.approx(mean, rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_members_in_half_precision_have_the_mean_that_is_rounded_once(dtype: torch.dtype) -> None:
    """A sum in half precision would stall: at 256 bfloat16 cannot add 1 any more."""
    _, late, _ = started(128, dtype)
    generator = torch.Generator().manual_seed(0)
    state = late.state_dict()
    for name, value in state["values"].items():
        if name in late.late_names():
            value.copy_(torch.rand(value.shape, generator=generator) + 3)
    late.load_state_dict(state)
    average = late.averaged_state_dict()
    for name in ("head.weight", "head.bias", "blocks.0.bias"):
        values = state["values"][name].double()
        if name.startswith("head"):
            assert torch.equal(average[name], values.mean(0).to(dtype))
        assert (average[name].double() - values.mean(0)).abs().max() <= 4 * torch.finfo(dtype).eps
        assert (values.to(dtype).cumsum(0)[-1] / 128 - values.mean(0)).abs().max() < 1  # it is not far, but not exact


@pytest.mark.parametrize("members", [1, 128])
def test_one_and_128_members_equal_the_reference(members: int) -> None:
    model, late, optimizer = started(members)
    plain = NET.build(0)
    clock = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    judge = Reference(plain, clock, late.late_names(), members)
    judge.start()
    for index in range(members + 2):
        x, y = NET.batch(4, index)
        turn(model, optimizer, index)
        judge.step(lambda member, x=x, y=y: loss(member(x), y))
    for k in (0, 1, members // 2, members - 1):
        with late.member(k % members):
            assert difference(tensors(model), tensors(judge.members[k % members]), 1e-12) == ""
    parked = sum(value.numel() for value in late.state_dict()["values"].values())
    own = sum(p.numel() for p in late.late_parameters()) + sum(b.numel() for b in model.buffers())
    assert parked == members * own  # and no second copy of the base


# Minibatches of one sample.


@pytest.mark.parametrize("blocks", [("bn",), ("bn-plain", "bn-cumulative")])
def test_one_sample_with_batchnorm_is_torchs_own_error_and_the_turn_is_repeated(blocks: tuple[str, ...]) -> None:
    net = Architecture("vector", blocks, "", (), torch.float64)
    model, late, optimizer = started(net=net, weights=("head",))
    for index in range(2):
        turn(model, optimizer, index)
    x, _ = net.batch(1, 9)
    before, now = every_member(late), (late.turn, late.rounds)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(x)
    optimizer.zero_grad()
    optimizer.step()
    assert now == (late.turn, late.rounds)
    for member, then in zip(every_member(late), before, strict=True):
        assert difference(uncounted(member), uncounted(then)) == ""
    turn(model, optimizer, 2)
    assert (late.turn, late.rounds) == (0, 1)


def test_one_sample_a_member_in_one_pass_is_refused_as_torch_does_and_members_stay_alike() -> None:
    net = Architecture("vector", ("bn",), "", (), torch.float64)
    _, late, optimizer = started(net=net)
    before = every_member(late)
    x, _ = net.batch(K, 9)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        late.parallel(x)
    for member, then in zip(every_member(late), before, strict=True):
        assert difference(uncounted(member), uncounted(then)) == ""
    x, y = net.batch(2 * K, 9)
    loss(late.parallel(x), y).backward()
    optimizer.step()
    assert late.rounds == 1


def test_a_pass_that_fails_half_way_moves_all_members_statistics_alike() -> None:
    net = Architecture("image", ("bn", "tanh"), "", (), torch.float64)
    model = net.build(0)
    model.head = nn.Sequential(nn.BatchNorm1d(4, dtype=torch.float64), model.head)
    late = latephase.LatePhase(model, K, "norm")
    late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    late.start()
    x, _ = net.batch(1, 0)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        late.parallel(x.repeat(K, 1, 1, 1))
    members = every_member(late)
    assert bool((members[0]["blocks.0.running_mean"] != 0).all())
    for member in members[1:]:
        assert difference(uncounted(member), uncounted(members[0])) == ""


# The fold of BatchNorm at the limits of its numbers: its output is the mean of the members' outputs.

CASES = {
    "variance of zero": {"var": [[0.0, 1.0], [0.0, 0.0]]},
    "scale of zero": {"weight": [[0.0, 1.0], [0.0, 0.0]]},
    "negative scales": {"weight": [[-1.0, 1.0], [2.0, -3.0]]},
    "scales that cancel": {"weight": [[1.0, -2.0], [-1.0, 2.0]]},
    "very different variances": {"var": [[1e-12, 1e12], [1e6, 1e-9]]},
    "large means": {"mean": [[1e6, -1e6], [1e3, 1e6]]},
}


@pytest.mark.parametrize("late_scale", [True, False])
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 1.0])
@pytest.mark.parametrize("what", CASES)
def test_the_fold_is_the_mean_of_outputs(what: str, eps: float, late_scale: bool) -> None:
    values = {"weight": [[1.0, 2.0], [0.5, 1.5]], "bias": [[0.0, 1.0], [1.0, -1.0]], "mean": [[0.5, 0.0], [1.0, 2.0]]}
    values |= {"var": [[1.0, 2.0], [3.0, 0.5]]} | CASES[what]
    stacks = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in values.items()}
    if not late_scale:
        stacks["weight"] = stacks["weight"][:1].repeat(2, 1)
    fold = NormFold(eps, "weight", "bias", "mean", "var", late_scale, late_shift=True)
    folded = stacks | {name: value.unsqueeze(0) for name, value in fold(stacks).items()}
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(-1, 1, 1)

    def outputs(of: dict[str, Tensor]) -> Tensor:
        scale = of["weight"][: len(of["mean"])] / (of["var"] + eps).sqrt()
        return ((x - of["mean"]) * scale + of["bias"][: len(of["mean"])]).mean(1)

    expected = outputs(stacks)
    assert torch.allclose(outputs(folded), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().clamp(min=1).item())
    equal = {name: value[:1].repeat(3, 1) for name, value in stacks.items()}
    for name, value in fold(equal).items():
        assert torch.equal(value, equal[name][0])


def test_counts_of_any_size_have_their_mean() -> None:
    huge = torch.tensor([[2**52, 3], [2**52 + 2, 4]])
    assert exact_mean(huge).round().tolist() == [2**52 + 1, 4]  # halves go to the even number
