"""collapse(): the same object, the average in it, and nothing of the phase left."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import latephase
from cases import EVERY, PAIRS, Case, assert_same, plain_tensors, run, run_reference, tensors, train


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_collapse_right_after_the_start_returns_the_model_it_started_from(case: Case) -> None:
    model, optimizer, late = case.attach()
    train(case, model, optimizer, case.batches(case.start))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    late.start()
    assert late.collapse() is model
    assert_same(dict(model.state_dict()), before)
    assert list(model.state_dict()) == list(before)


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_the_collapsed_model_is_the_references_average(case: Case) -> None:
    model, _, late = run(case, 8)
    average = run_reference(case, 8).average()
    (batch,) = case.batches(1, first=60)
    expected = average.eval()(batch[0])
    model = late.collapse(check=batch[0])
    assert_same(dict(model.state_dict()), plain_tensors(average), 1e-12)
    torch.testing.assert_close(model.eval()(batch[0]), expected, rtol=1e-11, atol=1e-11)
    assert late.phase == "collapsed"


def fingerprint(model: nn.Module) -> list:
    """All that a phase might leave on a model, but its values: classes, attributes, hooks, keys, order."""
    return [
        (name, type(module), sorted(module.__dict__), [len(getattr(module, h)) for h in HOOKS], list(module._modules))
        for name, module in model.named_modules()
    ] + [(name, tuple(p.shape), p.dtype, p.requires_grad) for name, p in model.named_parameters()]


HOOKS = [
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
]


@pytest.mark.parametrize("turns", [None, 0, 4])
@pytest.mark.parametrize("case", EVERY, ids=str)
def test_nothing_of_the_phase_is_left(case: Case, turns: int | None) -> None:
    model, optimizer, late = case.attach() if turns is None else run(case, turns)
    model = late.collapse()
    plain = case.plain()
    assert fingerprint(model) == fingerprint(plain)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert [len(g["params"]) for g in optimizer.param_groups] == [len(list(plain.parameters()))]
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    plain.load_state_dict(model.state_dict(), strict=True)
    before = tensors(model)
    train(case, model, optimizer, case.batches(2))  # plain training goes on with the same optimizer
    assert any(not torch.equal(a, b) for a, b in zip(tensors(model).values(), before.values(), strict=True))


def test_the_parameters_stay_the_same_objects_throughout() -> None:
    case = Case()
    model, optimizer, late = case.attach()
    identities = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    buffers = {name: (id(b), b.data_ptr()) for name, b in model.named_buffers()}
    late.start()
    train(case, model, optimizer, case.batches(5))
    model.eval()
    late.collapse()
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == identities
    assert {name: (id(b), b.data_ptr()) for name, b in model.named_buffers()} == buffers


@given(order=st.permutations(range(4)), row=st.sampled_from([c for c in EVERY if c.model in ("bn_cnn", "ln_mlp")]))
def test_collapse_does_not_depend_on_the_order_of_the_members(order, row: Case) -> None:
    """The same minibatches dealt to the members in another order, after one round: the same average.

    The base weights do not move within the round, so that members differ in their minibatch alone.
    """
    outcome = []
    for deal in (range(4), order):
        model = row.plain()
        late = latephase.LatePhase(model, members=4, weights=row.weights(), base_gradient="mean")
        optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        late.start()
        batches = list(row.batches(4))
        train(row, model, optimizer, [batches[i] for i in deal])
        outcome.append(dict(late.collapse().state_dict()))
    assert_same(outcome[0], outcome[1], 1e-13)


@pytest.mark.parametrize("family", ["norm", "parameters"])
def test_the_plain_mean_of_weights_and_statistics_is_the_other_choice(family: str) -> None:
    case = Case(family=family)
    model, _, late = run(case, 6)
    judge = run_reference(case, 6)
    late.collapse(statistics="mean")
    members = [tensors(member) for member in judge.members]
    for name, tensor in tensors(model).items():
        if name in judge.late or name.endswith(("running_mean", "running_var")):
            mean = torch.stack([held[name].double() for held in members]).mean(0)
        elif name.endswith("num_batches_tracked"):
            mean = torch.stack([held[name].double() for held in members]).mean(0).round().long()
        else:
            mean = judge.model.get_parameter(name).detach()
        torch.testing.assert_close(tensor, mean, rtol=1e-12, atol=1e-12)
    folded = plain_tensors(judge.average())
    different = "bn1.weight" if family == "norm" else "bn3.running_var"
    assert not torch.allclose(tensors(model)[different], folded[different], rtol=1e-6)
    with pytest.raises(latephase.LatePhaseValueError, match="fold"):
        run(case, 1)[2].collapse(statistics="median")


def test_check_takes_any_batch_and_compares() -> None:
    case = Case()
    batch = next(case.batches(1))
    for check in (batch[0], batch, [batch[0]], {"input": batch[0]}):
        model, _, late = run(case, 5)
        late.collapse(check=check)
        assert late.phase == "collapsed"
        assert model.training


def test_check_raises_when_the_outputs_differ() -> None:
    """A model whose output is not a function of its weights and its input cannot pass."""

    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head, self.calls = nn.LayerNorm(4), nn.Linear(4, 2), 0

        def forward(self, x):
            self.calls += 1
            return self.head(self.norm(x)) + 0.001 * self.calls

    model = Restless()
    late = latephase.LatePhase(model, members=2)
    late.start()
    with pytest.raises(latephase.LatePhaseError, match="differ"):
        late.collapse(check=torch.randn(3, 4))


def test_before_the_start_collapse_returns_the_plain_model() -> None:
    case = Case(family="rank-one")
    model, optimizer, late = case.attach()
    train(case, model, optimizer, case.batches(3))
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert late.collapse() is model
    assert_same(dict(model.state_dict()), saved)
    assert type(model.conv1) is nn.Conv2d


def test_an_unfinished_rounds_base_gradients_are_dropped() -> None:
    case = Case(family="head", optimizer="sgd")
    model, _, late = run(case, 5)
    done, _, _ = run(case, 3)
    late.collapse()
    assert torch.equal(model.conv1.weight, done.conv1.weight)


def test_collapse_in_eval_mode_and_of_a_wrapper() -> None:
    model, _, late = run(Case(), 4)
    average = late.averaged_state_dict()
    model.eval()
    late.collapse()
    assert not model.training
    assert_same(dict(model.state_dict()), dict(average))
