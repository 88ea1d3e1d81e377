"""What recipes say of optimizers, clipping and the pace of SWA, against literal loops."""

import copy

import pytest
import torch
import torch.nn.functional as F
from experiment_helpers import assert_same, tiny_recipe, trajectory
from torch import nn

from latephase.experiments.methods.weights import base_weight_decay
from latephase.experiments.optimizers import make_optimizer
from latephase.experiments.schedule import learning_rate
from latephase.experiments.trajectory import Trajectory


def finished(method: str, **changes: object) -> Trajectory:
    t = trajectory(method, tiny_recipe(**changes))
    t.run(t.total)
    return t


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_recipe_s_optimizer_trains_as_its_own_loop_does(name: str) -> None:
    t = finished("base", training__optimizer=name, training__lr=0.003, training__betas="[0.8,0.99]", training__clip=0.5)
    model = t.fresh_model()
    decay = t.recipe.training.weight_decay
    if name == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(
            model.parameters(), betas=(0.8, 0.99), weight_decay=decay, fused=True
        )
    else:
        groups = [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.99), fused=True)
    clipped = 0
    for step in range(t.total):
        x, y = t.batches.at(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(t.recipe.training, step / t.total)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        clipped += bool(nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.5)
        optimizer.step()
    assert clipped > 0
    assert_same(dict(t.model.state_dict()), dict(model.state_dict()))


def test_k_batch_clips_every_minibatch_s_own_gradient() -> None:
    t = finished("k-batch", training__clip=0.3, late_phase__start=0)
    model = t.fresh_model()
    optimizer = make_optimizer(t.recipe.training, model)
    sums = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(t.total):
        x, y = t.batches.at(step)
        optimizer.param_groups[0]["lr"] = learning_rate(t.recipe.training, step / t.total)
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        norm = torch.stack([g.norm() for g in gradients]).norm()
        sums = [s + g * min(1.0, 0.3 / float(norm)) for s, g in zip(sums, gradients, strict=True)]
        if step % 3 == 2:
            for p, s in zip(model.parameters(), sums, strict=True):
                p.grad = s
            optimizer.step()
            sums = [torch.zeros_like(p) for p in model.parameters()]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(t.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("every", [5, 7])
def test_swa_may_count_minibatches(every: int) -> None:
    t = trajectory("swa", tiny_recipe(swa__every=every, swa__start=0.5, training__epochs=2))
    begin, means, count = round(0.5 * t.total), {}, 0
    while t.step < t.total:
        t.run(t.step + 1)
        done = t.step - begin
        if done > 0 and (done % every == 0 or t.step == t.total):
            count += 1
            for name, value in t.model.named_parameters():
                means[name] = means.get(name, 0) + value.detach().double()
    assert count >= 2
    averaged = t.readings[0].model(t)
    assert_same(
        {name: value.detach() for name, value in averaged.named_parameters()},
        {name: (value / count).float() for name, value in means.items()},
    )


def test_rank_one_without_members_is_one_set_of_factors_in_plain_training() -> None:
    t = finished("rank-one", late_phase__start=0.5)
    assert t.method.late is not None
    assert t.method.late.members == 1
    assert any("row" in name for name in t.method.late.late_names())
    members = finished("late-phase-rank-one", late_phase__start=0.5)
    assert set(t.model.state_dict()) == set(members.model.state_dict())


def test_the_base_weights_decay_is_scaled_in_every_group() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    groups = [
        {"params": [model[0].weight, model[2].weight], "weight_decay": 0.2},
        {"params": [model[0].bias, *model[1].parameters(), model[2].bias], "weight_decay": 0.01},
    ]
    optimizer = torch.optim.AdamW(copy.copy(groups))
    base_weight_decay(optimizer, list(model[2].parameters()), 0.5)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = [0.1, 0.005, 0.005, 0.005, 0.2, 0.01]
    assert [decay[id(p)] for p in model.parameters()] == expected
