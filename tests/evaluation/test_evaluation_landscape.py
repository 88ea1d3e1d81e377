"""Loss and error at given weights, along lines and on planes, against closed forms and plain loops."""

import copy
import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from landscape_cases import CASE, data, flat, quadratic, random_states
from torch import nn

import latephase
from cases import run
from latephase import LatePhaseError, LatePhaseValueError
from latephase.evaluation.landscape import (
    LossAndError,
    StateEvaluator,
    barrier,
    combine,
    distance,
    line,
    plane,
)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_evaluator_scores_other_weights_and_leaves_the_model_alone(trained, recompute):
    states, _ = trained
    model = CASE.plain(seed=4)
    model.bn1.eval()
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    evaluate = StateEvaluator(model, data(), statistics_batches=data(first=20) if recompute else None)
    assert evaluate.statistics == ("recomputed" if recompute else "stored")
    score, classes = evaluate(states[1]), evaluate.classes(states[1])

    judge = CASE.plain()
    judge.load_state_dict(states[1])
    judge.eval()
    if recompute:
        latephase.recompute_statistics(judge, data(first=20))
    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    with torch.no_grad():
        logits = judge(x)
    assert score.loss == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-12)
    assert score.error == pytest.approx(float((logits.argmax(1) != y).double().mean()))
    assert torch.equal(classes, logits.argmax(1))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags


def test_recomputed_statistics_do_not_depend_on_those_stored(trained):
    states, _ = trained
    spoiled = {n: t * 3 + 1 if n.endswith(("running_mean", "running_var")) else t for n, t in states[0].items()}
    fresh = StateEvaluator(CASE.plain(), data(), statistics_batches=data(first=20))
    stored = StateEvaluator(CASE.plain(), data())
    assert fresh(spoiled) == fresh(states[0])
    assert stored(spoiled) != stored(states[0])


def test_samples_weigh_the_same_in_batches_of_any_size(trained):
    states, _ = trained
    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    whole = StateEvaluator(CASE.plain(), [(x, y)])(states[0])
    uneven = StateEvaluator(CASE.plain(), [(x[:20], y[:20]), (x[20:], y[20:])])(states[0])
    assert uneven.loss == pytest.approx(whole.loss, rel=1e-12)
    assert uneven.error == pytest.approx(whole.error)


def test_an_error_inside_leaves_the_model_as_it_was(trained):
    states, _ = trained
    model = CASE.plain(seed=4)
    before = copy.deepcopy(model.state_dict())

    def fails(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        StateEvaluator(model, data(), loss=fails)(states[0])
    odd = dict(states[0]) | {"fc.weight": torch.zeros(7, 7)}
    with pytest.raises(LatePhaseValueError, match=r"does not fit Sequential.*fc\.weight"):
        StateEvaluator(model, data())(odd)
    x, y = data()[0]
    with pytest.raises(LatePhaseValueError, match="the model has 3 classes"):
        StateEvaluator(model, [(x, y + 5)])(states[0])
    for evaluate in (StateEvaluator(model, []), StateEvaluator(model, []).classes):
        with pytest.raises(LatePhaseValueError, match="no samples"):
            evaluate(states[0])
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert model.training


def test_the_evaluator_refuses_spent_batches_and_a_model_of_members():
    with pytest.raises(LatePhaseValueError, match="a generator is spent after one pass"):
        StateEvaluator(CASE.plain(), CASE.batches(1))
    with pytest.raises(LatePhaseValueError, match="statistics_batches"):
        StateEvaluator(CASE.plain(), data(), statistics_batches=iter(data()))
    model, _, _ = run(CASE, turns=1)
    with pytest.raises(LatePhaseError, match="averaged_state_dict"):
        StateEvaluator(model, data())
    assert StateEvaluator(nn.Linear(2, 2), [], [torch.ones(1, 2)]).statistics == "none"


# Combinations, lines and barriers


def test_combinations_are_affine_and_keep_what_is_shared():
    a, b, c = random_states(3)
    c["a.bias"] = b["a.bias"] = a["a.bias"]
    mixed = combine([a, b, c], [0.5, -0.25, 0.75])
    torch.testing.assert_close(mixed["b.weight"], 0.5 * a["b.weight"] - 0.25 * b["b.weight"] + 0.75 * c["b.weight"])
    assert mixed["a.bias"] is a["a.bias"]
    single = [{n: t.float() for n, t in s.items()} for s in (a, b)]
    exact = 0.3 * single[0]["a.weight"].double() + 0.7 * single[1]["a.weight"].double()
    assert torch.equal(combine(single, [0.3, 0.7])["a.weight"], exact.float())
    with pytest.raises(LatePhaseValueError, match="sum 1"):
        combine([a, b], [0.5, 0.4])


def test_combinations_treat_statistics_as_such():
    a = {"running_var": torch.tensor([1.0, 4.0]), "num_batches_tracked": torch.tensor(5), "weight": torch.ones(2)}
    b = {"running_var": torch.tensor([3.0, 2.0]), "num_batches_tracked": torch.tensor(9), "weight": torch.zeros(2)}
    inside, outside = combine([a, b], [0.5, 0.5]), combine([a, b], [2.5, -1.5])
    assert inside["running_var"].tolist() == [2.0, 3.0]
    assert outside["running_var"].tolist() == [1.0, 7.0]  # not -2
    assert int(inside["num_batches_tracked"]) == 5
    assert distance(a, b) == pytest.approx(math.sqrt(2))


def test_a_line_through_a_bowl():
    a, b, c = random_states(3)
    found = line([a, b, c], quadratic, points=7, names=["one", "two", "three"])
    assert found.positions == pytest.approx([i / 6 for i in range(13)])
    for position, loss in zip(found.positions, found.loss, strict=True):
        station, t = min(int(position), 1), position - min(int(position), 1)
        start, end = flat([a, b][station]), flat([b, c][station])
        assert loss == pytest.approx(float(((1 - t) * start + t * end - 1).square().sum()))
    assert [s.length for s in found.segments] == pytest.approx(
        [float((flat(x) - flat(y)).norm()) for x, y in [(a, b), (b, c)]]
    )
    # A convex function lies below its chords.
    assert [s.loss_barrier for s in found.segments] == [0, 0]
    assert [s.error_barrier for s in found.segments] == [0, 0]
    assert found.stations == ("one", "two", "three")
    assert found.statistics == "not said"
    assert json.loads(json.dumps(found.to_dict()))["segments"][1]["length"] == found.segments[1].length


def test_a_barrier_is_the_height_over_the_chord():
    a, b = {"w": torch.zeros(1, dtype=torch.float64)}, {"w": torch.ones(1, dtype=torch.float64)}

    def hill(state):
        w = float(state["w"])
        return LossAndError(3 + w + math.sin(math.pi * w), 0.1 - 0.1 * w)

    found = line([a, b], hill, points=5)
    assert found.segments[0].loss_barrier == pytest.approx(1.0)
    assert found.segments[0].error_barrier == pytest.approx(0, abs=1e-15)
    assert barrier([0.0, -3.0, 0.0]) == 0
    assert barrier([2.0, 2.0]) == 0


def test_a_line_of_a_network_is_a_plain_loop_over_interpolated_models(trained):
    states, average = trained
    found = line([states[0], average, states[2]], StateEvaluator(CASE.plain(seed=7), data()), points=4)
    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    judged = []
    for i, (start, end) in enumerate([(states[0], average), (average, states[2])]):
        for t in (0, 1 / 3, 2 / 3, 1) if i == 0 else (1 / 3, 2 / 3, 1):
            model = CASE.plain()
            mixed = {n: torch.lerp(start[n], end[n], t) if start[n].is_floating_point() else start[n] for n in start}
            model.load_state_dict(mixed)
            with torch.no_grad():
                judged.append(float(F.cross_entropy(model.eval()(x), y)))
    assert found.loss == pytest.approx(judged, rel=1e-10)
    assert len(set(found.loss)) == 7
    assert found.statistics == "stored"


def test_equal_stations_make_a_flat_line(trained):
    states, _ = trained
    found = line([states[0], states[0]], StateEvaluator(CASE.plain(), data()), points=3)
    assert len(set(found.loss)) == 1
    assert found.segments[0].length == 0


# Planes


def test_a_plane_of_a_bowl_has_its_members_and_average_in_place():
    states = random_states(3)
    average = combine(states, [1 / 3] * 3)
    found = plane(states, quadratic, points=5, margin=0.2, average=average)
    points = np.array(found.members)
    for i, j in itertools.combinations(range(3), 2):
        assert np.linalg.norm(points[i] - points[j]) == pytest.approx(float((flat(states[i]) - flat(states[j])).norm()))
    assert found.average == pytest.approx(points.mean(axis=0).tolist())
    assert found.average_distance == pytest.approx(0, abs=1e-7)
    # On a plane the bowl is one: its value is that at the foot of its centre, plus the squared distance from there.
    u = flat(states[1]) - flat(states[0])
    u = u / u.norm()
    v = flat(states[2]) - flat(states[0])
    v = v - (v @ u) * u
    v = v / v.norm()
    for row, y in zip(found.loss, found.y, strict=True):
        for loss, x in zip(row, found.x, strict=True):
            judge = float((flat(states[0]) + x * u + y * v - 1).square().sum())
            assert loss == pytest.approx(judge, rel=1e-9)
    assert found.error == ((0.25,) * 5,) * 5
    low, high = min(points[:, 0]), max(points[:, 0])
    assert (found.x[0], found.x[-1]) == pytest.approx((low - 0.2 * (high - low), high + 0.2 * (high - low)))
    assert found.y[0] < 0 < found.members[2][1] < found.y[-1]


def test_the_average_may_lie_off_the_plane():
    states = random_states(3)
    off = random_states(1, seed=9)[0]
    found = plane(states, quadratic, points=2, average=off)
    basis, _ = torch.linalg.qr(torch.stack([flat(states[i]) - flat(states[0]) for i in (1, 2)], dim=1))
    rest = flat(off) - flat(states[0])
    assert found.average_distance == pytest.approx(float((rest - basis @ (basis.T @ rest)).norm()))
    assert np.linalg.norm(found.average) == pytest.approx(float((basis.T @ rest).norm()))


def test_a_plane_of_a_network_holds_its_members_losses(trained):
    states, average = trained
    evaluate = StateEvaluator(CASE.plain(), data())
    found = plane(states, evaluate, points=2, margin=0.0, average=average)
    # Without a margin the grid's first corner is the first member whenever the triangle is not obtuse there.
    if found.members[2][0] >= 0:
        assert found.loss[0][0] == pytest.approx(evaluate(states[0]).loss, rel=1e-10)
    wide = plane(states, evaluate, points=3, margin=3.0)  # far outside, where variances would become negative
    assert np.isfinite(wide.loss).all()
    assert wide.statistics == "stored"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s[:2], "at least 3"),
        (lambda s: [*s, s[0]], "4 members; a plane goes through three"),
        (lambda s: [s[0], s[1], combine(s[:2], [0.5, 0.5])], "lie on one line"),
        (lambda s: [s[0], s[0], s[2]], "lie on one line"),
        (lambda s: [s[0], s[1], s[1]], "lie on one line"),
        (lambda s: [s[0], s[1], {"x": torch.ones(1)}], "different keys"),
    ],
)
def test_a_plane_refuses_what_spans_none(change, says):
    with pytest.raises(LatePhaseValueError, match=says):
        plane(change(random_states(3)), quadratic)
