"""What is in the model: the average in eval mode however that is entered, the turn's member in training mode."""

import copy
import gc
import pickle
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import latephase
from cases import EVERY, FACTORED, Case, assert_same, run, tensors, train


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_state_dict_is_the_average_whatever_is_in_the_model(case: Case) -> None:
    model, _, late = run(case, 4)
    fresh = case.plain(seed=1)
    average = late.averaged_state_dict()
    assert list(average) == list(fresh.state_dict())
    assert isinstance(average, OrderedDict)
    situations = [nullcontext_train(model), model.eval(), late.member(2), late.average()]
    for situation in situations:
        if isinstance(situation, nn.Module):
            saved = model.state_dict()
        else:
            with situation:
                saved = model.state_dict()
        assert list(saved) == list(average)
        assert_same(dict(saved), dict(average))
    model.train()
    assert_same(dict(model.state_dict()), dict(average))
    fresh.load_state_dict(model.state_dict(), strict=True)
    (batch,) = case.batches(1, first=50)
    model.eval()
    torch.testing.assert_close(fresh.eval()(batch[0]), model(batch[0]), rtol=1e-12, atol=1e-12)


def nullcontext_train(model: nn.Module) -> nn.Module:
    return model.train()


def test_state_dict_is_a_copy_and_takes_a_prefix() -> None:
    model, optimizer, late = run(Case(), 4)
    saved = model.state_dict(prefix="net.")
    assert set(saved) == {f"net.{name}" for name in late.averaged_state_dict()}
    before = {name: tensor.clone() for name, tensor in late.averaged_state_dict().items()}
    mine = late.averaged_state_dict()
    train(Case(), model, optimizer, Case().batches(3))
    assert_same(dict(mine), before)
    part = model.bn1.state_dict()  # a submodule's too: SWA and exporters save parts
    assert torch.equal(part["weight"], late.averaged_state_dict()["bn1.weight"])


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


WAYS = {
    "model.eval()": (lambda m: m.eval(), lambda m: m.train()),
    "model.train(False)": (lambda m: m.train(False), lambda m: m.train(True)),
    "wrapper.eval()": (lambda m: Wrapper(m).eval(), lambda m: Wrapper(m).train()),
    "wrapper of wrappers": (lambda m: Wrapper(Wrapper(m)).eval(), lambda m: Wrapper(Wrapper(m)).train()),
    "sequential": (lambda m: nn.Sequential(m).eval(), lambda m: nn.Sequential(m).train()),
}


@pytest.mark.parametrize("way", WAYS)
def test_eval_is_the_average_however_it_is_entered(way: str) -> None:
    case = Case(model="wrn_10_1")
    model, _, late = run(case, 4)
    into, back = WAYS[way]
    plain = case.plain(seed=2)
    plain.load_state_dict(late.averaged_state_dict())
    plain.eval()
    (batch,) = case.batches(1, first=50)
    turn = tensors(model)
    into(model)
    with torch.no_grad():
        torch.testing.assert_close(model(batch[0]), plain(batch[0]), rtol=1e-12, atol=1e-12)
        features = model.forward_features(batch[0])
        torch.testing.assert_close(features, plain.forward_features(batch[0]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model.fc(features), plain(batch[0]), rtol=1e-12, atol=1e-12)
        stem = model.conv(batch[0])
        torch.testing.assert_close(model.blocks(stem), plain.blocks(stem), rtol=1e-12, atol=1e-12)
    assert_same(tensors(model), tensors(plain))
    back(model)
    assert_same(tensors(model), turn)
    assert model.training
    assert all(m.training for m in model.modules())


def test_a_frozen_batchnorm_in_a_training_model_keeps_its_member() -> None:
    model, _, late = run(Case(), 4)
    turn = tensors(model)
    for submodule in (model.bn1, model.bn3, model.fc):
        submodule.eval()
    assert_same(tensors(model), turn)
    assert late.turn == 1
    assert model.training
    assert not model.bn1.training
    model.eval()
    model.bn1.train()  # a part in training mode does not bring the member into a model in eval mode
    assert torch.equal(model.fc.weight, late.averaged_state_dict()["fc.weight"])


def test_a_user_who_freezes_batchnorm_in_train_is_heard() -> None:
    """Fine-tuning code overrides train() to keep BatchNorm in eval mode."""

    class Frozen(nn.Sequential):
        def train(self, mode: bool = True):
            super().train(mode)
            self[1].eval()
            return self

    def build():
        torch.manual_seed(0)
        return Frozen(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double().train()

    model = build()
    late = latephase.LatePhase(model, members=2)
    optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    late.start()
    for _ in range(4):
        model.eval()
        model.train()
        assert not model[1].training
        optimizer.zero_grad()
        model(torch.randn(5, 4, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
    assert model[1].num_batches_tracked == 0
    assert type(late.collapse()) is Frozen
    assert not model.train()[1].training


@pytest.mark.parametrize("mode", ["train", "eval", "pinned"])
@pytest.mark.parametrize("family", ["norm+head", "parameters", "full", "rank-one", "hypernetwork"])
def test_a_deepcopy_is_an_ordinary_model_that_holds_the_average(family: str, mode: str) -> None:
    case = Case(family=family)
    model, optimizer, late = run(case, 4)
    average = {name: tensor.clone() for name, tensor in late.averaged_state_dict().items()}
    if mode == "pinned":
        with late.member(2):
            twin = copy.deepcopy(model)
    else:
        twin = copy.deepcopy(model.train(mode == "train"))
    model.train()
    turn = tensors(model)
    assert list(twin.state_dict()) == list(average)
    assert_same(dict(twin.state_dict()), average)
    for change in (twin.eval, twin.train, twin.eval):
        change()
        assert_same(dict(twin.state_dict()), average)
    assert_same(tensors(model), turn)
    twin.train()  # it trains on its own, and the phase does not notice
    twins = torch.optim.SGD(twin.parameters(), lr=0.1)
    train(case, twin, twins, case.batches(2, first=70))
    assert_same(tensors(model), turn)
    assert not torch.equal(next(iter(twin.state_dict().values())), next(iter(average.values())))
    after = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    train(case, model, optimizer, case.batches(3, first=7))
    late.collapse()
    assert_same(dict(twin.state_dict()), after)
    if family not in FACTORED:  # the copy keeps its factors, which a second phase would take for foreign ones
        second = latephase.LatePhase(twin, members=2, weights=case.weights())
        second.start()


def test_a_deepcopy_before_the_start_is_the_model() -> None:
    case = Case()
    model, _, late = case.attach()
    twin = copy.deepcopy(model)
    late.start()
    assert_same(dict(twin.state_dict()), dict(case.plain().state_dict()))
    twin.eval()
    twin.train()


def test_a_pickle_of_the_model_is_the_averaged_model() -> None:
    """Some trainers send models to other processes; a pickle must not drag the phase along."""
    model, _, late = run(Case(model="ln_mlp"), 4)
    average = dict(late.averaged_state_dict())
    twin = pickle.loads(pickle.dumps(model))
    assert_same(dict(twin.state_dict()), average)
    twin.eval()
    assert_same(dict(twin.state_dict()), average)


def test_a_model_that_loads_plain_weights_gives_them_to_every_member() -> None:
    case = Case()
    model, optimizer, late = run(case, 4)
    other = case.plain(seed=5).state_dict()
    model.load_state_dict(other)
    assert_same(dict(late.averaged_state_dict()), dict(other))
    for k in range(3):
        with late.member(k):
            assert_same(tensors(model), {name: other[name] for name in tensors(model)})
    train(case, model, optimizer, case.batches(3))


@pytest.mark.parametrize("family", ["norm+head", "full", "rank-one", "hypernetwork"])
def test_loaded_values_reach_every_member_also_where_one_has_them_already(family: str) -> None:
    """After the first turn member 1, in the model now, has the initial values still, and member 0 has not."""
    case = Case(family=family, start=0)
    plain = case.plain().state_dict()
    model, _, late = run(case, 1)
    model.load_state_dict(plain)
    for k in range(3):
        with late.member(k):
            state = {name: tensor.clone() for name, tensor in copy.deepcopy(model).state_dict().items()}
            assert_same(state, dict(plain), 1e-15)
    assert_same(dict(late.averaged_state_dict()), dict(plain), 1e-15)


def test_memory_is_released_with_the_phase() -> None:
    """After collapse nothing on the model or the optimizer holds the phase."""
    import weakref

    model, optimizer, late = run(Case(), 4)
    watch = weakref.ref(late)
    late.collapse()
    del late
    gc.collect()
    assert watch() is None
    assert model is not None
    assert optimizer is not None


INTERRUPTIONS = st.sampled_from(
    ["eval", "state_dict", "predict", "member", "average", "averaged", "save", "load", "wrapper", "nothing", "zero"]
)


@given(
    plan=st.lists(st.tuples(INTERRUPTIONS, st.booleans()), min_size=7, max_size=7),
    case=st.sampled_from([c for c in EVERY if c.model in ("bn_cnn", "ln_mlp", "tied")]),
)
def test_no_interruption_shows_in_the_training(plan, case: Case) -> None:
    """Evaluating, saving, looking at members between the turns: the run that goes on is the same, bit for bit."""
    expected = tensors(run(case, 7)[0])
    model, optimizer, late = case.attach()
    train(case, model, optimizer, case.batches(case.start))
    late.start()
    (probe,) = case.batches(1, first=90)
    for (interruption, before_zero_grad), batch in zip(plan, case.batches(7, first=case.start), strict=True):
        if before_zero_grad:
            interrupt(interruption, model, late, optimizer, probe[0])
        optimizer.zero_grad()
        if not before_zero_grad:
            interrupt(interruption, model, late, optimizer, probe[0])
        case.loss(batch)(model).backward()
        optimizer.step()
    assert_same(tensors(model), expected)


def interrupt(what: str, model, late, optimizer, x) -> None:
    if what in ("eval", "wrapper"):
        target = Wrapper(model) if what == "wrapper" else model
        target.eval()
        with torch.no_grad():
            model(x)
        target.train()
    elif what == "predict":
        late.predict(x)
    elif what in ("member", "average"):
        with late.average() if what == "average" else late.member(late.members - 1):
            model(x) if what == "average" and not model.training else None
    elif what == "averaged":
        late.averaged_state_dict()
    elif what == "state_dict":
        model.state_dict()
    elif what == "save":
        late.state_dict()
    elif what == "load":
        late.load_state_dict(late.state_dict())
    elif what == "zero":
        optimizer.zero_grad(set_to_none=False)
