"""Layers and perturbations against NumPy and plain loops; what all of the landscape refuses."""

import itertools
import math

import numpy as np
import pytest
import torch
from landscape_cases import CASE, data, flat, quadratic, random_states

from latephase import LatePhaseValueError
from latephase.evaluation.landscape import (
    LossAndError,
    StateEvaluator,
    barrier,
    direction,
    layer_disagreement,
    layer_distances,
    line,
    perturb,
    plane,
)


def test_distances_by_layer_against_numpy():
    states = random_states(4)
    for s in states[1:]:
        s["b.weight"] = states[0]["b.weight"]
    found = {d.layer: d for d in layer_distances(states)}
    rows = np.array([np.r_[s["a.weight"].numpy().ravel(), s["a.bias"].numpy()] for s in states])
    to_mean = np.linalg.norm(rows - rows.mean(0), axis=1)
    assert found["a"].weights == 9
    assert found["a"].to_reference == pytest.approx(to_mean.tolist())
    assert found["a"].norm == pytest.approx(np.linalg.norm(rows.mean(0)))
    assert found["a"].relative == pytest.approx(math.sqrt((to_mean**2).mean()) / np.linalg.norm(rows.mean(0)))
    pairs = [np.linalg.norm(x - y) for x, y in itertools.combinations(rows, 2)]
    assert found["a"].pairwise == pytest.approx(np.mean(pairs))
    assert (found["b"].pairwise, found["b"].relative, set(found["b"].to_reference)) == (0, 0, {0.0})


def test_distances_from_a_reference_of_their_own(trained):
    states, average = trained
    found = {d.layer: d for d in layer_distances(states, average)}
    assert list(found) == ["conv1", "bn1", "conv2", "conv3", "bn3", "fc"]  # bn2 has no weights
    judge = [
        float(torch.cat([(s[n] - average[n]).flatten() for n in ("bn1.weight", "bn1.bias")]).norm()) for s in states
    ]
    assert found["bn1"].to_reference == pytest.approx(judge)
    assert found["conv1"].pairwise == 0
    assert found["fc"].pairwise > 0


def test_disagreement_by_layer_against_plain_models_with_one_layer_exchanged(trained):
    states, average = trained
    batches = data(count=4, size=25)
    x = torch.cat([x for x, _ in batches])
    evaluator = StateEvaluator(CASE.plain(seed=2), batches)
    found = layer_disagreement(states, average, evaluator)
    assert [(d.layer, d.whole) for d in found] == [("", True), ("bn1", False), ("bn3", False), ("fc", False)]

    def classes(state):
        model = CASE.plain()
        model.load_state_dict(state)
        with torch.no_grad():
            return model.eval()(x).argmax(1)

    reference = classes(average)
    for entry in found:
        prefix = "" if entry.whole else f"{entry.layer}."
        judge = [
            float(
                (classes({n: s[n] if n.startswith(prefix) else t for n, t in average.items()}) != reference)
                .double()
                .mean()
            )
            for s in states
        ]
        assert list(entry.disagreement) == pytest.approx(judge)
    assert max(found[0].disagreement) > 0
    one = layer_disagreement(states, average, evaluator, layers=["fc"])
    assert one == (found[0], found[-1])
    fresh = StateEvaluator(CASE.plain(), batches, statistics_batches=data(first=20))
    assert {d.statistics for d in found} == {"stored"}
    assert layer_disagreement(states, average, fresh, layers=["fc"])[0].statistics == "recomputed"
    with pytest.raises(LatePhaseValueError, match="no layer 'fd'; the layers with weights are conv1, bn1"):
        layer_disagreement(states, average, evaluator, layers=["fd"])


# Perturbations


@pytest.mark.parametrize("normalisation", ["filter", "tensor"])
def test_directions_have_the_size_of_what_they_move(normalisation):
    state = {
        "conv.weight": torch.randn(5, 3, 3, 3),
        "conv.bias": torch.randn(5),
        "bn.running_var": torch.rand(5),
        "dead.weight": torch.zeros(2, 2),
        "bn.num_batches_tracked": torch.tensor(3),
    }
    d = direction(state, normalisation, torch.Generator().manual_seed(0))
    if normalisation == "filter":
        assert set(d) == {"conv.weight", "dead.weight"}
        torch.testing.assert_close(
            d["conv.weight"].flatten(1).norm(dim=1), state["conv.weight"].double().flatten(1).norm(dim=1)
        )
    else:
        assert set(d) == {"conv.weight", "conv.bias", "dead.weight"}
        for name, step in d.items():
            torch.testing.assert_close(step.norm(), state[name].double().norm())
    assert d["dead.weight"].abs().max() == 0


@pytest.mark.parametrize("normalisation", ["filter", "tensor"])
def test_a_bowl_rises_with_the_square_of_the_size(normalisation):
    """E |w + s d - c|^2 = |w - c|^2 + s^2 |d|^2, as directions have mean zero; |d| is exactly that of what moves."""
    state = random_states(1)[0]
    moved = sum(float(t.square().sum()) for n, t in state.items() if normalisation == "tensor" or t.ndim > 1)
    sizes = (0.1, 0.5, 2.0)
    found = perturb(state, quadratic, sizes, draws=100, normalisation=normalisation)
    assert found.sizes == (0.0, *sizes)
    start = quadratic(state).loss
    assert found.loss[0] == start
    for size, loss, deviation in zip(sizes, found.loss[1:], found.loss_standard_error[1:], strict=True):
        assert abs(loss - start - size**2 * moved) < 4 * deviation
        assert deviation > 0
    assert found.error == (0.25,) * 4
    assert found.error_standard_error == (0.0,) * 4


def test_perturbations_repeat_and_each_draw_is_used_at_every_size():
    state = random_states(1)[0]
    seen = []

    def watch(moved):
        seen.append(flat(moved) - flat(state))
        return LossAndError(float(seen[-1].norm()), 0.0)

    found = perturb(state, watch, (0.1, 0.3), draws=2, seed=5)
    assert found == perturb(state, watch, (0.1, 0.3), draws=2, seed=5)
    steps = seen[1], seen[3]
    perturb(state, watch, (0.1, 0.3), draws=2, seed=6)
    assert not torch.allclose(seen[-4], steps[0])
    torch.testing.assert_close(seen[2], 3 * seen[1])
    torch.testing.assert_close(seen[4], 3 * seen[3])
    assert not torch.allclose(seen[1], seen[3])
    assert found.loss_standard_error[1] == pytest.approx(0, abs=1e-12)  # the norm is the same for every draw


def test_standard_error_is_that_of_the_mean_over_draws():
    state = random_states(1)[0]
    values = []

    def watch(moved):
        values.append(float(flat(moved).sum()))
        return LossAndError(values[-1], values[-1] / 2)

    found = perturb(state, watch, (0.5,), draws=6)
    draws = np.array(values[1:])
    assert found.loss[1] == pytest.approx(draws.mean())
    assert found.loss_standard_error[1] == pytest.approx(draws.std(ddof=1) / math.sqrt(6))
    assert found.error_standard_error[1] == pytest.approx(draws.std(ddof=1) / math.sqrt(6) / 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sizes": ()}, "sizes"),
        ({"sizes": (0.1, 0.0)}, "sizes"),
        ({"sizes": (float("inf"),)}, "sizes"),
        ({"draws": 1}, "draws: 1"),
        ({"normalisation": "layer"}, "'layer'; use one of 'filter', 'tensor'"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_perturbation_refuses_bad_options(options, says):
    with pytest.raises(LatePhaseValueError, match=says):
        perturb(random_states(1)[0], quadratic, **options)


# Bad input


@pytest.mark.parametrize(
    ("states", "says"),
    [
        (random_states(1), "1 state dicts; it needs at least 2"),
        ([{"w": torch.ones(2)}, {"w": torch.ones(3)}], "'w' has shape"),
        ([{"w": torch.ones(2)}, {"w": torch.tensor([1.0, float("nan")])}], "'w' of state dict 1 is not finite"),
        ([{"running_mean": torch.ones(2)}] * 2, "hold no weights"),
    ],
)
def test_lines_and_distances_refuse_states_that_do_not_belong_together(states, says):
    with pytest.raises(LatePhaseValueError, match=says):
        line(states, quadratic)
    with pytest.raises(LatePhaseValueError, match=says):
        layer_distances(states)


def test_lines_refuse_bad_options():
    with pytest.raises(LatePhaseValueError, match="points: 2"):
        line(random_states(2), quadratic, points=2)
    with pytest.raises(LatePhaseValueError, match="1 names of 2 stations"):
        line(random_states(2), quadratic, names=["a"])
    with pytest.raises(LatePhaseValueError, match="1 points"):
        barrier([1.0])
    with pytest.raises(LatePhaseValueError, match="margin -1"):
        plane(random_states(3), quadratic, margin=-1)
    with pytest.raises(LatePhaseValueError, match="1 member"):
        layer_distances(random_states(1), random_states(1)[0])
