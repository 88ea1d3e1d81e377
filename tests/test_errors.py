"""Bad input: an exception of the library's own that names the thing, and nothing is half-changed."""

import pytest
import torch
from torch import nn

import latephase
from cases import Case, assert_same, run, tensors, train
from latephase import LatePhaseError, LatePhaseValueError


def shape_of(model: nn.Module) -> list:
    """Whatever an attachment that failed half-way would leave on a model."""
    return [
        (name, type(m), sorted(m.__dict__), sum(len(v) for k, v in m.__dict__.items() if k.endswith("_hooks")))
        for name, m in model.named_modules()
    ] + [(n, id(p)) for n, p in model.named_parameters()]


def test_the_errors_are_what_they_are_elsewhere() -> None:
    assert issubclass(LatePhaseError, RuntimeError)
    assert issubclass(LatePhaseValueError, LatePhaseError)
    assert issubclass(LatePhaseValueError, ValueError)


ARGUMENTS = [
    ({"members": 0}, r"members.*0"),
    ({"members": -3}, r"members.*-3"),
    ({"members": 2.5}, r"members.*2\.5"),
    ({"members": "ten"}, "ten"),
    ({"weights": []}, "weights"),
    ({"weights": ["norms"]}, r"norms.*norm"),
    ({"weights": [3]}, "3"),
    ({"weights": [latephase.Parameters("layer9.*")]}, r"layer9.*conv1"),
    ({"weights": [latephase.Head("nonsense")]}, r"nonsense.*fc"),
    ({"weights": [latephase.Head("act1")]}, r"act1.*fc"),
    ({"weights": [latephase.RankOne(names=["nothing*"])]}, "nothing"),
    ({"weights": [latephase.Hypernetwork(names=["nothing*"])]}, "nothing.*conv1"),
    ({"weights": [latephase.Hypernetwork(names="conv*", split=4)]}, r"split=4.*conv1.*2 input channels.*1, 2"),
    ({"weights": [latephase.Hypernetwork(split=3)]}, r"split=3.*conv2 \(4\)"),
    ({"weights": ["norm", latephase.Parameters("bn1.weight")]}, r"bn1\.weight"),
    ({"weights": ["norm", "full"]}, "bn1"),
    ({"weights": ["head", latephase.RankOne()]}, "fc"),
    ({"weights": ["head", latephase.Hypernetwork(names="fc")]}, "fc"),
    ({"weights": [latephase.Hypernetwork(), latephase.RankOne(names="conv3")]}, "conv3"),
    ({"weights": ["norm", "norm"]}, "bn1"),
    ({"noise": -0.1}, r"noise.*-0\.1"),
    ({"noise": float("nan")}, r"noise.*nan"),
    ({"noise": float("inf")}, r"noise.*inf"),
    ({"base_gradient": "average"}, r"average.*mean"),
    ({"base_gradient": float("nan")}, "nan"),
    ({"optimizer_state": "keep"}, r"keep.*copy"),
    ({"accumulate": "somewhere"}, r"somewhere.*in_place"),
    ({"members_over_ranks": True}, "distributed"),
]


@pytest.mark.parametrize(("arguments", "words"), ARGUMENTS, ids=lambda a: str(a)[:40])
def test_bad_arguments_name_the_thing_and_change_nothing(arguments: dict, words: str) -> None:
    model = Case().plain()
    before, values = shape_of(model), tensors(model)
    with pytest.raises(LatePhaseValueError, match=f"(?s){words}"):
        latephase.LatePhase(model, **arguments)
    assert shape_of(model) == before
    assert_same(tensors(model), values)
    latephase.LatePhase(model).start()  # and a good call works afterwards


@pytest.mark.parametrize(
    ("weights", "model", "words"),
    [
        (["norm"], nn.Sequential(nn.Linear(2, 2)), r"norm.*Linear|Linear.*norm"),
        (["norm"], nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2)), "scale"),
        (["head"], nn.Sequential(nn.Conv1d(2, 2, 1)), "Linear"),
        (["full"], nn.Sequential(nn.ReLU()), "parameters"),
        ([latephase.RankOne(nn.Conv2d)], nn.Sequential(nn.Linear(2, 2)), "Conv2d"),
        (["hypernetwork"], nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), r"first and the last.*0, 1.*names"),
        ([latephase.Hypernetwork(nn.Conv2d)], nn.Sequential(nn.Linear(2, 2)), "Conv2d"),
    ],
)
def test_weights_that_match_nothing_list_what_the_model_has(weights, model, words) -> None:
    with pytest.raises(LatePhaseValueError, match=f"(?s){words}"):
        latephase.LatePhase(model, weights=weights)


def test_a_tied_head_is_an_error_that_lists_the_candidates() -> None:
    case = Case(model="tied")
    model = case.plain()
    with pytest.raises(LatePhaseValueError, match=r"(?s)embed.*mix|mix.*embed"):
        latephase.LatePhase(model, weights=["head"])
    with pytest.raises(LatePhaseValueError, match=r"embed|decoder"):
        latephase.LatePhase(model, weights=[latephase.Parameters("embed.*"), latephase.Parameters("decoder.*")])
    latephase.LatePhase(model, weights=[latephase.Head("mix")]).start()


def test_a_tensor_with_a_foreign_parametrization_is_refused_by_name() -> None:
    for weights in (["head"], [latephase.RankOne()], ["full"], [latephase.Parameters("2.*")]):
        model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
        nn.utils.parametrizations.weight_norm(model[2])
        before = shape_of(model)
        with pytest.raises(LatePhaseValueError, match=r"2\.weight|2\.parametrizations"):
            latephase.LatePhase(model, weights=weights)
        assert shape_of(model) == before


def test_no_model_and_two_phases() -> None:
    with pytest.raises(LatePhaseValueError, match="dict"):
        latephase.LatePhase({}, members=2)
    model, _, late = run(Case(), 2)
    before = late.averaged_state_dict()
    with pytest.raises(LatePhaseError, match="collapse"):
        latephase.LatePhase(model, members=2)
    assert_same(dict(late.averaged_state_dict()), dict(before))


def test_optimizers_that_cannot_work() -> None:
    case = Case()
    model = case.plain()
    late = latephase.LatePhase(model)
    stranger = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(LatePhaseValueError, match=r"SGD.*none of the .*parameters"):
        late.optimizer(stranger)
    assert not stranger._optimizer_step_pre_hooks
    for wrong in (model, model.parameters(), None, "sgd"):
        with pytest.raises(LatePhaseValueError, match="optimizer"):
            late.optimizer(wrong)
    late.start()
    only_base = torch.optim.SGD([model.conv1.weight], lr=0.1)
    assert late.optimizer(only_base) is only_base


def test_start_without_the_optimizer_of_a_late_weight_is_an_error() -> None:
    model = Case().plain()
    late = latephase.LatePhase(model)
    late.optimizer(torch.optim.SGD([model.conv1.weight, model.bn1.weight], lr=0.1))
    with pytest.raises(LatePhaseError, match=r"fc\.weight|bn1\.bias"):
        late.start()
    assert late.phase == "attached"
    late.optimizer(torch.optim.SGD([p for n, p in model.named_parameters() if n not in ("conv1.weight", "bn1.weight")]))
    late.start()


def test_the_same_optimizer_twice_is_one() -> None:
    case = Case()
    model, optimizer, late = case.attach()
    assert late.optimizer(optimizer) is optimizer
    late.start()
    train(case, model, optimizer, case.batches(1))
    assert late.turn == 1


def test_start_twice() -> None:
    model, _, late = run(Case(), 2)
    before, turn = tensors(model), late.turn
    with pytest.raises(LatePhaseError, match="start"):
        late.start()
    assert_same(tensors(model), before)
    assert late.turn == turn


def test_members_before_the_start_and_beyond_their_number() -> None:
    _, _, late = Case().attach()
    x = torch.zeros(2, 2, 6, 6, dtype=torch.float64)
    for call in (lambda: late.member(0).__enter__(), lambda: late.average().__enter__(), lambda: late.predict(x)):
        with pytest.raises(LatePhaseError, match="start"):
            call()
    late.start()
    for k in (-1, 3, 99):
        with pytest.raises(LatePhaseValueError, match=str(k)):
            late.member(k).__enter__()


def test_everything_of_a_collapsed_phase_is_an_error() -> None:
    case = Case()
    model, optimizer, late = run(case, 2)
    saved = late.state_dict()
    late.collapse()
    before = tensors(model)
    x = torch.zeros(3, 2, 6, 6, dtype=torch.float64)
    calls = [
        late.start,
        late.collapse,
        lambda: late.optimizer(optimizer),
        lambda: late.member(0).__enter__(),
        lambda: late.average().__enter__(),
        lambda: late.predict(x),
        lambda: late.parallel(x),
        lambda: late.load_state_dict(saved),
    ]
    for call in calls:
        with pytest.raises(LatePhaseError, match="collapsed"):
            call()
        assert late.phase == "collapsed"
        assert_same(tensors(model), before)
    assert_same(dict(late.averaged_state_dict()), dict(model.state_dict()))  # works in every phase


def test_collapse_inside_a_context_is_an_error() -> None:
    model, _, late = run(Case(), 2)
    with late.member(1):
        before = tensors(model)
        with pytest.raises(LatePhaseError, match="context"):
            late.collapse()
        assert_same(tensors(model), before)
    assert late.phase == "late"
    late.collapse()


def test_a_model_that_was_half_frozen_says_what_it_lacks() -> None:
    """Late weights that cannot train need no optimizer; a phase of none but those is worth an error or works."""
    model = Case().plain()
    model.fc.requires_grad_(False)
    late = latephase.LatePhase(model, members=2)
    optimizer = late.optimizer(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))
    late.start()
    train(Case(), model, optimizer, Case().batches(4))
    assert late.rounds == 2
    for k in range(2):
        with late.member(k):
            assert torch.equal(model.fc.weight, Case().plain().fc.weight)
