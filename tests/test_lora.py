"""LoRA: which weights get adapters, the average of their products, the frozen base; what the table does not say."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import latephase
from cases import SCALE, Case, assert_matches, assert_same, run, run_reference, tensors, train
from latephase import LatePhaseError, LatePhaseValueError, LoRA
from latephase.families.lora import MeanOfProducts

ROWS = [Case("ln_mlp", "lora"), Case("tied", "lora", "adamw"), Case("lstm", "lora-frozen"), Case("bn_cnn", "lora")]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 9), nn.Tanh(), nn.Linear(9, 3)).double()


def attach(model: nn.Module, *weights, members: int = 3, **options) -> latephase.LatePhase:
    return latephase.LatePhase(model, members, [*weights], **options)


def adapter(model: nn.Module, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """B, A and the weight under them."""
    owner, _, own = name.rpartition(".")
    made = model.get_submodule(owner).parametrizations[own]
    return made[0].up, made[0].down, made.original


def products(late: latephase.LatePhase, name: str) -> Tensor:
    """The members' B_k A_k, (K, out, in)."""
    found = []
    for k in range(late.members):
        with late.member(k):
            up, down, _ = adapter(late.model, name)
            found.append((up @ down).detach().clone())
    return torch.stack(found)


# Which weights, which factors


def test_targets_are_patterns_and_by_default_all_that_the_rank_fits() -> None:
    def names(*args, **kwargs) -> list[str]:
        return list(LoRA(*args, **kwargs).targets(mlp()))

    assert names(3) == ["0.weight", "2.weight", "4.weight"]
    assert names(4) == names() == ["0.weight", "2.weight"]  # the last has three outputs
    assert names(10) == ["0.weight"]  # as large as the smaller side
    assert names(2, targets="[24]") == ["2.weight", "4.weight"]
    assert names(2, targets=["0", "4"]) == ["0.weight", "4.weight"]


def test_embeddings_and_what_is_tied_to_them_take_part_by_name_only() -> None:
    model = Case("decoder").plain()
    assert not any("embed" in name for name in LoRA(2).targets(model))
    for name in ("embed", "lm_head"):
        assert list(LoRA(2, targets=name).targets(model)) == ["embed.weight"]


@pytest.mark.parametrize(
    ("layer", "up", "down"),
    [
        (nn.Linear(6, 5), (5, 2), (2, 6)),
        (nn.Conv1d(4, 6, 3), (6, 2), (2, 12)),
        (nn.Conv2d(4, 6, 3, groups=2), (6, 2), (2, 18)),
        (nn.Conv3d(4, 8, 1), (8, 2), (2, 4)),
        (nn.Embedding(7, 3), (7, 2), (2, 3)),
        (nn.LSTM(3, 4), (16, 2), (2, 3)),
        (nn.MultiheadAttention(4, 2), (12, 2), (2, 4)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_every_kind_of_weight_equals_the_equation(layer: nn.Module, up, down) -> None:
    model = copy.deepcopy(layer).double()
    plain = dict(copy.deepcopy(model.state_dict()))
    late = attach(model, LoRA(2, alpha=6, targets="*"))
    name = next(iter(LoRA(2, targets="*").targets(layer)))
    first = late.late_names()[0].removesuffix(".0.up").replace("parametrizations.", "")
    assert first == name
    b, a, weight = adapter(model, name)
    assert (tuple(b.shape), tuple(a.shape)) == (up, down)
    assert not b.any()
    assert a.std() > 0
    assert_same(dict(model.state_dict()), plain)
    with torch.no_grad():
        b.normal_()
    expected = weight + 3 * (b @ a).reshape(weight.shape)
    torch.testing.assert_close(model.state_dict()[name], expected.detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attachment_keeps_the_function_bit_for_bit(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    x = torch.randn(4, 12).to(dtype)
    expected, before = model(x), tensors(model)
    state = torch.get_rng_state()
    late = attach(model, "lora")
    assert torch.equal(torch.get_rng_state(), state)  # A has a generator of its own
    assert torch.equal(model(x), expected)
    late.start()
    assert torch.equal(model(x), expected)
    assert torch.equal(model.eval()(x), expected)
    assert_same(tensors(late.collapse()), before)


def test_the_seed_decides_what_a_is() -> None:
    one, other, again = mlp(), mlp(), mlp()
    attach(one, LoRA(2)), attach(other, LoRA(2, seed=1)), attach(again, LoRA(2))
    assert torch.equal(adapter(one, "0.weight")[1], adapter(again, "0.weight")[1])
    assert not torch.equal(adapter(one, "0.weight")[1], adapter(other, "0.weight")[1])
    bound = 1 / 12**0.5  # Kaiming uniform as nn.Linear has it
    assert 0.8 * bound < adapter(one, "0.weight")[1].abs().max() <= bound


# The average


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_the_average_of_products_is_the_average_of_the_effective_weights(case: Case) -> None:
    model, _, late = run(case, 8)
    names = case.factored_names()
    effective: dict[str, list[Tensor]] = {name: [] for name in names}
    for k in range(3):
        with late.member(k):
            for name in names:
                owner, _, own = name.rpartition(".")
                effective[name].append(getattr(model.get_submodule(owner), own).detach().clone())
    average = late.averaged_state_dict()
    for name in names:
        assert not torch.allclose(effective[name][0], effective[name][1])
        torch.testing.assert_close(average[name], torch.stack(effective[name]).mean(0), rtol=0, atol=1e-14)
    model.eval()
    for name in names:  # in eval mode the weight has taken it up, and the factors are neutral
        up, _, weight = adapter(model, name)
        assert not up.any()
        assert torch.equal(weight, average[name])
    model.train()
    late.collapse()
    assert_same(dict(model.state_dict()), dict(average))
    assert not any("parametrizations" in name for name, _ in model.named_parameters())


def test_the_average_of_factors_is_another() -> None:
    model, _, late = run(Case("ln_mlp", "lora-factors"), 8)
    name = "3.weight"
    pairs = []
    for k in range(3):
        with late.member(k):
            up, down, weight = (t.detach().clone() for t in adapter(model, name))
            pairs.append((up, down))
    mean = [torch.stack(part).mean(0) for part in zip(*pairs, strict=True)]
    average = late.averaged_state_dict()[name]
    torch.testing.assert_close(average, weight + SCALE * mean[0] @ mean[1], rtol=0, atol=1e-14)
    assert not torch.allclose(average, weight + SCALE * products(late, name).mean(0), rtol=0, atol=1e-12)


def test_the_difference_of_both_averages_is_reported_by_weight() -> None:
    model, _, late = run(Case("ln_mlp", "lora"), 8)
    found = LoRA.difference(late)
    assert list(found) == ["0.weight", "3.weight", "6.weight"]
    for name, value in found.items():
        every = products(late, name)
        with_products = late.averaged_state_dict()[name]
        ups, downs = [], []
        for k in range(3):
            with late.member(k):
                up, down, weight = (t.detach().clone() for t in adapter(model, name))
                ups.append(up)
                downs.append(down)
        with_factors = weight + SCALE * sum(ups) / 3 @ (sum(downs) / 3)
        expected = (with_factors - with_products).norm() / (SCALE * every.mean(0)).norm()
        assert value == pytest.approx(expected.item(), rel=1e-10)
        assert value > 1e-6
    assert model.training
    fresh = attach(mlp(), LoRA(2))
    with pytest.raises(LatePhaseError, match=r"before start\(\)"):
        LoRA.difference(fresh)
    fresh.start()
    assert set(LoRA.difference(fresh).values()) == {0.0}
    with pytest.raises(LatePhaseValueError, match="no low-rank adapters"):
        LoRA.difference(attach(mlp(), "head"))


def test_the_average_does_not_depend_on_the_order_of_the_members() -> None:
    torch.manual_seed(0)
    rule = MeanOfProducts("w", "b", "a", 0.7)
    stacks = {"w": torch.randn(1, 6, 5), "b": torch.randn(7, 6, 2), "a": torch.randn(7, 2, 5)}
    stacks = {name: stack.double() for name, stack in stacks.items()}
    expected = rule(stacks)
    for seed in range(5):
        order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
        assert_same(rule({"w": stacks["w"], "b": stacks["b"][order], "a": stacks["a"][order]}), expected)


def test_equal_members_average_to_exactly_themselves_after_training() -> None:
    case = Case("ln_mlp", "lora", dtype=torch.float32)
    model, optimizer, late = case.attach()
    train(case, model, optimizer, case.batches(5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    late.start()
    assert_same(dict(late.averaged_state_dict()), before)
    assert_same(dict(late.collapse().state_dict()), before)


def test_evaluation_leaves_the_base_weights_as_they_were() -> None:
    """The average overwrites them in the model; training goes on with the members' own, bit for bit."""
    case = Case("ln_mlp", "lora")
    outcome = []
    for evaluates in (False, True):
        model, optimizer, late = case.attach()
        late.start()
        for index, batch in enumerate(case.batches(8)):
            train(case, model, optimizer, [batch])
            if evaluates and index % 2:
                model.eval()
                late.state_dict()
                model.train()
        outcome.append(tensors(model))
    assert_same(outcome[1], outcome[0])


@pytest.mark.parametrize("training", [False, True])
def test_a_deepcopy_is_the_averaged_model_and_goes_its_own_way(training: bool) -> None:
    case = Case("decoder", "lora")
    model, _, _ = run(case, 5)
    twin = copy.deepcopy(model.train(training))
    (batch,) = case.batches(1, first=40)
    expected = model.eval()(batch[0])
    assert torch.equal(twin.eval()(batch[0]), expected)
    train(case, twin.train(), torch.optim.SGD(twin.parameters(), lr=0.5), case.batches(3))
    assert torch.equal(model(batch[0]), expected)
    assert not torch.allclose(twin.eval()(batch[0]), expected)


@pytest.mark.parametrize("evaluating", [False, True])
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_saved_in_any_mode_and_resumed_is_uninterrupted(case: Case, evaluating: bool) -> None:
    model, optimizer, late = run(case, 4)
    model.train(not evaluating)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), late.state_dict()))
    model.train()
    twin = replace(case, start=0).plain(seed=6)
    theirs = type(optimizer)(twin.parameters(), lr=1.0)
    again = latephase.LatePhase(twin, 3, case.weights(), base_gradient=case.gamma)
    again.optimizer(theirs)
    twin.load_state_dict(state[0])
    theirs.load_state_dict(state[1])
    again.load_state_dict(state[2])
    for m, o in ((model, optimizer), (twin, theirs)):
        train(case, m, o, case.batches(4, first=case.start + 4))
    assert_same(tensors(twin), tensors(model))
    assert_same(dict(again.averaged_state_dict()), dict(late.averaged_state_dict()))
    assert not set(state[2]["plain"]) & set(state[2]["shared"])  # base weights are saved once


def test_plain_weights_loaded_late_are_everybodys_and_the_adapters_still_train() -> None:
    case = Case("ln_mlp", "lora")
    model, optimizer, late = run(case, 4)
    other = case.plain(seed=8)
    for mode in (True, False):
        model.train(mode).load_state_dict(other.state_dict())
        assert_same(dict(model.state_dict()), dict(other.state_dict()))
    model.train()
    for k in range(3):
        with late.member(k):
            assert not adapter(model, "3.weight")[0].any()
            assert adapter(model, "3.weight")[1].any()
    train(case, model, optimizer, case.batches(6))
    assert all(p.any() for p in products(late, "3.weight"))


# The base


def test_a_frozen_base_stays_and_is_thawed_at_the_end() -> None:
    model = mlp()
    model[2].bias.requires_grad_(False)  # the user's own choice
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    F.mse_loss(model(torch.randn(5, 12).double()), torch.zeros(5, 3).double()).backward()  # a gradient left over
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    late = attach(model, LoRA(2, targets="[02]", train_base=False), "head")
    late.optimizer(optimizer)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(late.late_names())
    before = tensors(model)
    for index in range(9):
        if index == 3:
            late.start()
        F.mse_loss(model(torch.randn(5, 12).double()), torch.ones(5, 3).double()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    after = tensors(model)
    assert {n for n in before if not torch.equal(before[n], after[n])} == trained
    late.collapse()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_a_refused_attachment_freezes_nothing() -> None:
    class Refusing(latephase.Family):
        def targets(self, model):
            return {"4.bias": model[4].bias}

        def install(self, model, targets):
            raise LatePhaseValueError("no")

    model = mlp()
    with pytest.raises(LatePhaseValueError, match="no"):
        attach(model, LoRA(2, targets="0", train_base=False), Refusing())
    assert all(p.requires_grad for p in model.parameters())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in mlp().named_parameters()]


def test_only_the_adapters_need_an_optimizer() -> None:
    """Fine-tuning: a trained model, adapters on a frozen base, members at once."""
    model = mlp()
    late = attach(model, LoRA(2, train_base=False))
    optimizer = late.optimizer(torch.optim.Adam(late.late_parameters(), lr=0.02))
    late.start()
    x = torch.randn(60, 12).double()
    y = (x[:, 0] > 0).long()
    first = F.cross_entropy(model(x), y).item()
    for _ in range(90):
        optimizer.zero_grad()
        part = torch.randperm(60)[:20]
        F.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    late.collapse(check=x)
    assert F.cross_entropy(model(x), y) < 0.5 * first


# The laws once more, for what the table has only one row of


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
@pytest.mark.parametrize("family", ["lora", "lora-frozen", "lora-factors"])
@pytest.mark.parametrize("model", ["gn_cnn", "decoder"])
def test_the_loop_equals_the_reference(model: str, family: str, optimizer: str) -> None:
    case = Case(model, family, optimizer, "mean")
    assert_matches(run(case, 8)[2], run_reference(case, 8), 1e-11)


def test_autocast_makes_the_weights_in_full_precision() -> None:
    case = Case("ln_mlp", "lora", dtype=torch.float32)
    model, optimizer, late = case.attach()
    late.start()
    for batch in case.batches(7):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            weight = model[3].weight
            loss = case.loss(batch)(model)
        assert weight.dtype == torch.float32
        assert torch.equal(weight, model[3].weight)
        loss.backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_compiled_model_is_the_eager_one() -> None:
    outcome = []
    for backend in (None, "aot_eager"):
        case = Case("decoder", "lora", start=0)
        model, optimizer, late = case.attach()
        late.start()
        called = model if backend is None else torch.compile(model, backend=backend)
        for x, y in case.batches(7):
            optimizer.zero_grad()
            F.cross_entropy(called(x), y).backward()
            optimizer.step()
        outcome.append(dict(late.averaged_state_dict()))
    assert_same(outcome[1], outcome[0], 1e-11)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rank": 0}, r"rank=0.*at least 1"),
        ({"rank": 2.0}, r"rank=2\.0"),
        ({"rank": True}, "rank=True"),
        ({"alpha": 0}, r"alpha=0.*above 0"),
        ({"alpha": -1.5}, r"alpha=-1\.5"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"average": "median"}, r"median.*products"),
    ],
)
def test_bad_arguments_are_named_with_their_value(arguments: dict, words: str) -> None:
    with pytest.raises(LatePhaseValueError, match=words):
        LoRA(**arguments)


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (LoRA(4, targets="*"), r"rank=4.*4\.weight \(3 x 9\).*at most 3"),
        (LoRA(11), r"rank=11.*0\.weight \(10 x 12\).*at most 3"),
        (LoRA(2, targets="q_proj"), r"q_proj.*matches nothing.*0, 2, 4"),
    ],
)
def test_weights_that_cannot_be_are_named_with_what_would_work(family: LoRA, words: str) -> None:
    model = mlp()
    before = tensors(model)
    with pytest.raises(LatePhaseValueError, match=words):
        attach(model, family)
    assert_same(tensors(model), before)


def test_complex_weights_are_refused() -> None:
    with pytest.raises(LatePhaseValueError, match=r"'weight' is complex"):
        attach(nn.Linear(4, 4, dtype=torch.complex64), LoRA(2))
