"""recompute_statistics: the exact pooled mean and variance, and never a half-changed model."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cases import Case, assert_same, run, tensors
from latephase import LatePhaseError, LatePhaseValueError, recompute_statistics


class Net(nn.Module):
    """Dropout in front of every BatchNorm, of which one has no momentum and one no affine weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.drop, self.norm1 = nn.Linear(4, 6), nn.Dropout(0.5), nn.BatchNorm1d(6)
        self.norm2 = nn.BatchNorm1d(6, momentum=None, affine=False)
        self.conv, self.norm3 = nn.Conv1d(1, 3, 2), nn.BatchNorm1d(3, momentum=0.5)

    def forward(self, x):
        h = torch.relu(self.norm1(self.drop(self.stem(x))))
        return self.norm3(self.conv(self.drop(self.norm2(h)).unsqueeze(1)))


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(seed)
    model = Net().to(dtype)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(5, 4, dtype=dtype) * 4)
    return model


def by_hand(model: Net, batches) -> dict[str, torch.Tensor]:
    """Pools what each layer is given when BatchNorm normalises by the batch and dropout is off."""
    seen: dict[str, list[torch.Tensor]] = {"norm1": [], "norm2": [], "norm3": []}
    for x in batches:
        h = model.stem(x)
        seen["norm1"].append(h)
        h = torch.relu(F.batch_norm(h, None, None, model.norm1.weight, model.norm1.bias, training=True))
        seen["norm2"].append(h)
        h = model.conv(F.batch_norm(h, None, None, training=True).unsqueeze(1))
        seen["norm3"].append(h.transpose(1, 2).reshape(-1, 3))
    expected = {}
    for name, parts in seen.items():
        values = torch.cat(parts).detach().double()
        expected[f"{name}.running_mean"] = values.mean(0)
        expected[f"{name}.running_var"] = values.var(0, unbiased=True)
    return expected


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: b.clone() for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))}


@given(sizes=st.lists(st.integers(2, 9), min_size=1, max_size=5), training=st.booleans(), seed=st.integers(0, 99))
def test_mean_and_variance_are_those_of_all_samples_together(sizes, training: bool, seed: int) -> None:
    """However the samples fall into batches: a short last one weighs what it holds."""
    model = net()
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(n, 4, generator=generator, dtype=torch.float64) * 3 + 5 for n in sizes]
    parameters = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.train(training)
    assert recompute_statistics(model, batches) is model
    assert_same(statistics(model), by_hand(model, batches), 1e-12)
    assert_same({n: p.detach() for n, p in model.named_parameters()}, parameters)
    assert all(m.training == training for m in model.modules())
    assert model.norm1.num_batches_tracked == len(sizes)


def test_the_result_does_not_depend_on_the_old_statistics_or_on_the_random_state() -> None:
    batches = [torch.randn(6, 4, dtype=torch.float64) for _ in range(3)]
    first = statistics(recompute_statistics(net(), batches))
    model = net()
    for buffer in model.buffers():
        buffer.fill_(float("nan")) if buffer.is_floating_point() else buffer.fill_(77)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert_same(statistics(recompute_statistics(model, batches)), first)
    assert torch.equal(torch.get_rng_state(), state)  # dropout was off: nothing was drawn


def test_a_last_batch_of_one_counts() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).double()
    data = torch.randn(9, 3, dtype=torch.float64)
    recompute_statistics(model, [data[:4], data[4:8], data[8:]])
    assert_same(statistics(model), {"0.running_mean": data.mean(0), "0.running_var": data.var(0, unbiased=True)}, 1e-13)
    deep = net()
    recompute_statistics(deep, [torch.randn(4, 4, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)])
    assert all(t.isfinite().all() for t in statistics(deep).values())


def test_values_far_from_zero_keep_their_variance() -> None:
    """Sums of squares in float32 would lose it all."""
    model = nn.Sequential(nn.BatchNorm1d(2))
    data = torch.randn(400, 2, dtype=torch.float64) * 0.1 + 3000.0
    recompute_statistics(model, data.float().split(64))
    exact = data.float().double()
    torch.testing.assert_close(model[0].running_var.double(), exact.var(0), rtol=1e-3, atol=0)
    torch.testing.assert_close(model[0].running_mean.double(), exact.mean(0), rtol=1e-6, atol=0)


def test_structures_of_batches() -> None:
    x = [torch.randn(5, 4, dtype=torch.float64) for _ in range(2)]
    expected = statistics(recompute_statistics(net(), x))
    structures = [
        ([(b, torch.zeros(5)) for b in x], None),
        ([[b, torch.zeros(5)] for b in x], None),
        ([{"x": b} for b in x], None),
        ([{"pixels": b, "labels": 0} for b in x], lambda model, batch: model(batch["pixels"])),
        ((b for b in x), None),
        (torch.utils.data.DataLoader(torch.cat(x), batch_size=5), None),
    ]
    for batches, forward in structures:
        assert_same(statistics(recompute_statistics(net(), batches, forward)), expected)


def test_a_frozen_batchnorm_keeps_its_statistics() -> None:
    model = net().train()
    model.norm1.eval()
    before, batches = statistics(model), [torch.randn(6, 4, dtype=torch.float64) for _ in range(2)]
    recompute_statistics(model, batches)
    after = statistics(model)
    assert_same({n: after[n] for n in after if "norm1" in n}, {n: before[n] for n in before if "norm1" in n})
    assert not torch.equal(after["norm2.running_mean"], before["norm2.running_mean"])
    assert not model.norm1.training
    assert model.norm2.training
    # what comes behind it was normalised by its running statistics, as in training
    h = torch.relu(
        F.batch_norm(
            model.stem(torch.cat(batches)),
            before["norm1.running_mean"],
            before["norm1.running_var"],
            model.norm1.weight,
            model.norm1.bias,
        )
    )
    torch.testing.assert_close(after["norm2.running_mean"], h.mean(0).detach(), rtol=1e-12, atol=1e-12)


def broken_loader(x):
    yield x
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        (lambda x: [], LatePhaseValueError, "no batch"),
        (lambda x: iter(()), LatePhaseValueError, "no batch"),
        (lambda x: broken_loader(x), OSError, "disk"),
        (lambda x: [x, x[:, :2]], RuntimeError, "shape"),
        (lambda x: [x, 3.5], LatePhaseValueError, r"float.*forward"),
        (lambda x: [x, {"unknown": x}], TypeError, "unknown"),
        (lambda x: [x[:1]], LatePhaseValueError, "at least 2"),
    ],
)
def test_on_any_error_the_old_statistics_and_modes_are_back(batches, error, words) -> None:
    model = net().train()
    model.drop.eval()
    before, flags = tensors(model), [m.training for m in model.modules()]
    with pytest.raises(error, match=words):
        recompute_statistics(model, batches(torch.randn(6, 4, dtype=torch.float64)))
    assert_same(tensors(model), before)
    assert [m.training for m in model.modules()] == flags
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_model_whose_members_are_alive_is_refused() -> None:
    case = Case()
    model, _, late = run(case, 4)
    x = [b for b, _ in case.batches(3)]
    before = tensors(model)
    for target in (model, nn.Sequential(model), model.eval()):
        with pytest.raises(LatePhaseError, match="collapse"):
            recompute_statistics(target, x)
    model.train()
    assert_same(tensors(model), before)
    late.collapse(statistics="mean")
    recompute_statistics(model, x)
    assert not torch.equal(tensors(model)["bn1.running_mean"], before["bn1.running_mean"])


def test_under_autocast_the_pooling_stays_precise() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    x = torch.randn(64, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        recompute_statistics(model, x.split(16))
        h = torch.cat([model[0](part) for part in x.split(16)]).detach().double()
    assert model[1].running_mean.dtype == torch.float32
    torch.testing.assert_close(model[1].running_mean.double(), h.mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(model[1].running_var.double(), h.var(0), rtol=1e-5, atol=1e-7)


def test_without_batchnorm_and_without_gradients() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    before = tensors(model)
    assert recompute_statistics(model, [torch.randn(2, 4)]) is model
    assert_same(tensors(model), before)
    grads = []
    recompute_statistics(net(), [torch.randn(4, 4).double()], lambda m, x: grads.append(m(x).requires_grad))
    assert grads == [False]
