"""The members come to life: exact copies, or copies with noise from a generator of the phase's own."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import latephase
from cases import EVERY, Case, assert_same, run, tensors, train


def members(late: latephase.LatePhase) -> list[dict[str, torch.Tensor]]:
    held = []
    for k in range(late.members):
        with late.member(k):
            held.append(tensors(late.model))
    return held


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_without_noise_every_member_is_the_model_bit_for_bit(case: Case) -> None:
    model, optimizer, late = case.attach()
    train(case, model, optimizer, case.batches(case.start))
    before, keys = tensors(model), dict(model.state_dict())
    keys = {name: tensor.clone() for name, tensor in keys.items()}
    late.start()
    assert (late.phase, late.turn, late.rounds, late.members) == ("late", 0, 0, 3)
    for held in members(late):
        assert_same(held, before)
    assert_same(tensors(model), before)
    assert_same(dict(late.averaged_state_dict()), keys)


class Wide(nn.Module):
    """Late tensors large enough for their noise to be measured, one of them all zero, and a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(200, 200), nn.BatchNorm1d(200), nn.Linear(200, 200)
        nn.init.normal_(self.head.weight, std=3.0)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        return self.head(self.norm(self.body(x)))


def wide(seed: int = 0, sigma: float = 0.1, dtype: torch.dtype = torch.float32, count: int = 4):
    torch.manual_seed(0)
    late = latephase.LatePhase(Wide().to(dtype), members=count, noise=sigma, seed=seed)
    late.start()
    return late


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sigma", [0.01, 0.3])
def test_noise_is_sigma_times_the_tensors_rms(sigma: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    source = tensors(Wide().to(dtype))
    late = wide(sigma=sigma, dtype=dtype)
    for held in members(late):
        noise = held["head.weight"].double() - source["head.weight"].double()
        rms = source["head.weight"].double().square().mean().sqrt()
        # 40,000 draws: the standard deviation is within 2% (5.6 sigma), the mean within 2.5% of it (5 sigma)
        rounding = 0.02 if dtype != torch.bfloat16 else 0.1
        assert noise.std() == pytest.approx(sigma * rms.item(), rel=rounding)
        assert abs(noise.mean()) < 0.025 * sigma * rms
        assert (held["norm.weight"] != 1).double().mean() > 0.5  # in bfloat16 small noise rounds away
    untouched = (
        "body.weight",
        "body.bias",
        "head.bias",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
    )
    for held in members(late):  # base weights, statistics, and tensors whose RMS is zero
        assert_same({n: held[n] for n in untouched}, {n: source[n] for n in untouched})


def test_noise_differs_between_members_tensors_and_seeds() -> None:
    source = tensors(wide(sigma=0.0).model)["head.weight"]
    draws = [held["head.weight"] - source for held in members(wide())]
    draws += [held["head.weight"] - source for held in members(wide(seed=1))]
    flat = torch.stack([d.flatten() for d in draws])
    correlation = torch.corrcoef(flat) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.03  # independent: 1/sqrt(40,000) = 0.005


def test_noise_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    first = members(wide())
    torch.manual_seed(0)
    late = latephase.LatePhase(Wide(), members=4, noise=0.1, seed=0)
    torch.manual_seed(99)  # what the global generator did before plays no part
    torch.rand(7)
    before = torch.get_rng_state()
    late.start()
    assert torch.equal(torch.get_rng_state(), before)
    for held, expected in zip(members(late), first, strict=True):
        assert_same(held, expected)


def test_training_after_the_start_draws_nothing_from_the_global_generator() -> None:
    before = None
    case = Case(family="rank-one")
    model, optimizer, late = case.attach(noise=0.1)
    late.start()
    before = torch.get_rng_state()
    train(case, model, optimizer, case.batches(4))
    late.predict(next(case.batches(1))[0])
    late.averaged_state_dict()
    late.collapse()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_noisy_members_train_and_average_to_their_mean() -> None:
    late = wide()
    mean = torch.stack([held["head.weight"].double() for held in members(late)]).mean(0).float()
    assert torch.equal(late.averaged_state_dict()["head.weight"], mean)


@pytest.mark.parametrize("when", ["no optimizer", "optimizer first", "optimizer between"])
def test_start_right_after_attaching_is_the_fine_tuning_path(when: str) -> None:
    """Members from the first minibatch on; the order of the calls does not matter."""
    case = Case(start=0)
    expected = run(case, 5)[2].averaged_state_dict()
    model = case.plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-3)
    late = latephase.LatePhase(model, members=3, weights=case.weights())
    if when == "optimizer first":
        late.optimizer(optimizer)
    late.start()
    if when != "optimizer first":
        late.optimizer(optimizer)
    train(case, model, optimizer, case.batches(5))
    assert_same(dict(late.averaged_state_dict()), dict(expected))


@pytest.mark.parametrize("gamma", ["sum", 0.25])
def test_members_of_one_norm_layer_see_their_own_statistics(gamma) -> None:
    """Member k's running mean is that of its own minibatches alone."""
    case = replace(Case(start=0, family="norm"), gamma=gamma)
    model, optimizer, late = case.attach()
    late.start()
    batches = list(case.batches(3))
    weight = model.conv1.weight.detach().clone()
    train(case, model, optimizer, batches)
    for k, held in enumerate(members(late)):
        batch_mean = nn.functional.conv2d(batches[k][0], weight, padding=1).mean((0, 2, 3))
        torch.testing.assert_close(held["bn1.running_mean"], 0.1 * batch_mean, rtol=0, atol=1e-12)
        assert held["bn1.num_batches_tracked"] == 1
