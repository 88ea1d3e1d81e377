"""Members as plain state dicts, and their ensemble against their average."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import latephase
from cases import Case, run
from latephase.errors import LatePhaseValueError
from latephase.evaluation import Metrics, compare_average, evaluate_members, evaluate_model, member_states

CASES = [
    Case(model=model, family=family)
    for model, family in [("bn_cnn", "norm+head"), ("bn_cnn", "rank-one"), ("bn_cnn", "full"), ("wrn_10_1", "norm")]
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_member_is_a_plain_model_of_its_own(case):
    _, _, late = run(case, turns=4)  # in the middle of a round
    before = copy.deepcopy(late.state_dict())
    states = member_states(late)
    assert len(states) == late.members
    x = torch.cat([batch[0] for batch in case.batches(3, first=50)])
    outputs = late.predict(x)
    for state, expected in zip(states, outputs, strict=True):
        fresh = case.plain(seed=1)
        assert list(state) == list(fresh.state_dict())
        fresh.load_state_dict(state)
        with torch.no_grad():
            torch.testing.assert_close(fresh.eval()(x), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(outputs[0], outputs[1])
    assert_same(late.state_dict(), before)


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_what_members_share_is_one_tensor_and_the_rest_is_their_own():
    _, _, late = run(Case(), turns=3)
    first, second, third = member_states(late)
    late_layers = {"bn1", "bn2", "bn3", "fc"}
    for name in first:
        # Every member has seen as many batches as the others.
        own = name.partition(".")[0] in late_layers and not name.endswith("num_batches_tracked")
        assert (first[name] is not second[name]) == own, name
        assert (second[name] is not third[name]) == own, name
    model = late.model
    assert all(t.data_ptr() != p.data_ptr() for s in (first, second) for t in s.values() for p in model.parameters())


def test_members_need_a_phase_that_has_started():
    model = Case().plain()
    late = latephase.LatePhase(model)
    with pytest.raises(latephase.LatePhaseError, match="before start"):
        member_states(late)
    with pytest.raises(latephase.LatePhaseError, match="before start"):
        compare_average(late, Case().batches(1))


def test_a_model_that_renames_its_state_is_refused_by_name():
    model = Case().plain()
    model.register_state_dict_post_hook(lambda m, state, *_: state.update({"odd.name": state.pop("fc.weight")}))
    late = latephase.LatePhase(model, members=2)
    late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    late.start()
    with pytest.raises(latephase.LatePhaseValueError, match=r"'odd\.name'"):
        member_states(late)


@pytest.mark.parametrize("case", CASES[:2], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_comparison_against_the_other_evaluations_and_plain_arithmetic(case, training):
    model, _, late = run(case, turns=4)
    model.train(training)
    model.bn1.eval()  # a frozen layer stays one
    flags = [m.training for m in model.modules()]
    batches = [*case.batches(4, size=7, first=80)]
    found = compare_average(late, iter(batches))
    assert [m.training for m in model.modules()] == flags

    ensemble, members, disagreement = evaluate_members(late, batches)
    assert found.ensemble == ensemble.compute()
    for name, value in found.member_mean.items():
        assert value == pytest.approx(sum(m.compute()[name] for m in members) / 3)
    assert [list(row) for row in found.disagreement] == disagreement
    assert found.samples == 28

    plain = case.plain(seed=1)
    plain.load_state_dict(late.averaged_state_dict())
    assert found.average == pytest.approx(evaluate_model(plain, batches).compute(), rel=1e-9)
    x = torch.cat([batch[0] for batch in batches])
    with torch.no_grad():
        q = plain.eval()(x).softmax(1)
    each = late.predict(x).softmax(2)
    p = each.mean(0)
    assert found.divergence == pytest.approx(float(F.kl_div(q.log(), p, reduction="batchmean")), rel=1e-9)
    assert found.distance == pytest.approx(float((p - q).abs().sum(1).mean() / 2), rel=1e-9)
    assert found.agreement == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))
    differs = (each.argmax(2) != q.argmax(1)).double().mean(1)
    assert found.from_average == pytest.approx(differs.tolist())
    pairs = [disagreement[i][j] for i in range(3) for j in range(3) if i != j]
    assert found.mean_disagreement == pytest.approx(sum(pairs) / 6)
    assert json.loads(json.dumps(found.to_dict()))["disagreement"] == disagreement


def test_equal_members_agree_in_everything():
    case = Case(members=2)
    _, _, late = case.attach()
    late.start()
    found = compare_average(late, case.batches(2))
    assert found.average == pytest.approx(found.ensemble)
    assert (found.agreement, found.distance, found.mean_disagreement) == (1, 0, 0)
    assert abs(found.divergence) < 1e-14
    single = Case(members=1)
    _, _, late = single.attach()
    late.start()
    assert compare_average(late, single.batches(1)).mean_disagreement is None


def test_comparison_refuses_bad_data():
    case = Case()
    model, _, late = run(case, turns=1)
    with pytest.raises(latephase.LatePhaseValueError, match="no samples"):
        compare_average(late, [])
    x, y = next(case.batches(1))
    with pytest.raises(latephase.LatePhaseValueError, match="the model has 3 classes"):
        compare_average(late, [(x, y + 3)])
    assert model.training


def test_layers_that_a_user_froze_stay_frozen_after_an_evaluation():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    model[1].eval()
    evaluate_model(model, [(torch.randn(6, 5), torch.randint(4, (6,)))])
    assert [m.training for m in model] == [True, False, True, True]
    assert model.training
    with pytest.raises(RuntimeError, match="mat1"):
        evaluate_model(model, [(torch.randn(6, 3), torch.randint(4, (6,)))])
    assert [m.training for m in model] == [True, False, True, True]


def test_a_member_is_back_in_the_model_after_an_evaluation_of_the_average():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    late = latephase.LatePhase(model, members=2, noise=0.5)
    late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    late.start()
    before = model[1].weight.detach().clone()
    evaluate_model(model, [(torch.randn(6, 5), torch.randint(4, (6,)))])
    assert torch.equal(model[1].weight, before)
    assert model.training


def test_labels_that_do_not_fit_and_empty_data_are_refused():
    model = nn.Sequential(nn.Linear(5, 4))
    late = latephase.LatePhase(model, members=2, weights=["head"])
    late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    late.start()
    wrong = [(torch.randn(3, 5), torch.tensor([0, 1, 4]))]
    with pytest.raises(LatePhaseValueError, match="labels from 0 to 4, but the model has 4 classes"):
        evaluate_model(model, wrong)
    with pytest.raises(LatePhaseValueError, match="labels from 0 to 4, but the model has 4 classes"):
        evaluate_members(late, wrong)
    with pytest.raises(LatePhaseValueError, match="Metrics: labels from 0 to 2"):
        Metrics().update(torch.zeros(2, 2), torch.tensor([0, 2]))
    for score, what in ((evaluate_model, model), (evaluate_members, late)):
        with pytest.raises(LatePhaseValueError, match="no samples"):
            score(what, [])
