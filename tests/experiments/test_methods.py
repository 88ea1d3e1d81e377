"""Every method against an obvious, literal implementation of its definition."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from experiment_helpers import EVERY_TRAINING, assert_same, tiny_recipe, trajectory
from torch import Tensor, nn

import latephase
from latephase.experiments.errors import ExperimentError
from latephase.experiments.methods import METHODS, Method, label_of, method_names, parse_method
from latephase.experiments.outcome import predictor_of
from latephase.experiments.plan import plan_seed
from latephase.experiments.schedule import learning_rate
from latephase.experiments.trajectory import Trajectory
from latephase.reference import Reference

LATE = {"features.1.weight", "features.1.bias", "features.5.weight", "features.5.bias"}
HEAD = {"classifier.weight", "classifier.bias"}


def rates(t: Trajectory) -> Callable[[int], float]:
    return lambda step: learning_rate(t.recipe.training, step / t.total)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)


def literal_model(t: Trajectory) -> tuple[nn.Module, torch.optim.SGD]:
    """Plain SGD up to T0, as anybody would write it."""
    model = t.fresh_model()
    optimizer = sgd(model)
    for step in range(round(0.5 * t.total)):
        x, y = t.batches.at(step)
        optimizer.param_groups[0]["lr"] = rates(t)(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, optimizer


def gradients(model: nn.Module, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(model.parameters())))


def finished(method: str, **changes: object) -> Trajectory:
    t = trajectory(method, tiny_recipe(**changes))
    t.run(t.total)
    return t


def assert_equal_weights(ours: nn.Module, theirs: nn.Module) -> None:
    assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))


def test_base_is_plain_sgd() -> None:
    t = finished("base")
    model, optimizer = literal_model(t)
    for step in range(round(0.5 * t.total), t.total):
        optimizer.param_groups[0]["lr"] = rates(t)(step)
        optimizer.zero_grad()
        x, y = t.batches.at(step)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert_equal_weights(t.model, model)


def test_lr_over_k_divides_the_learning_rate_from_t0_on() -> None:
    t = finished("lr-over-k")
    model, optimizer = literal_model(t)
    for step in range(round(0.5 * t.total), t.total):
        optimizer.param_groups[0]["lr"] = rates(t)(step) * (1 / 3)
        optimizer.zero_grad()
        x, y = t.batches.at(step)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert_equal_weights(t.model, model)


# 24 minibatches after T0: with K = 3 eight rounds, with K = 5 four and a rest that never steps.
@pytest.mark.parametrize("K", [3, 5])
def test_k_batch_steps_on_the_sum_of_k_gradients(K: int) -> None:
    t = finished("k-batch", late_phase__members=K)
    model, optimizer = literal_model(t)
    steps = range(round(0.5 * t.total), t.total)
    for first in steps[::K]:
        group = range(first, min(first + K, t.total))
        rounds = [gradients(model, t.batches.at(step)) for step in group]
        if len(group) < K:
            break
        for i, p in enumerate(model.parameters()):
            p.grad = _sum([g[i] for g in rounds])
        optimizer.param_groups[0]["lr"] = rates(t)(group[-1])
        optimizer.step()
    assert_equal_weights(t.model, model)


@pytest.mark.parametrize("K", [3, 5])
@pytest.mark.parametrize("gamma", ["sum", "mean", 0.5])
def test_the_twin_steps_base_weights_on_the_sum_and_late_weights_on_the_mean(K: int, gamma: str | float) -> None:
    t = finished("twin", late_phase__members=K, late_phase__base_gradient=gamma)
    model, optimizer = literal_model(t)
    factor = {"sum": 1.0, "mean": 1 / K, 0.5: 0.5}[gamma]
    steps = range(round(0.5 * t.total), t.total)
    for first in steps[::K]:
        group = range(first, min(first + K, t.total))
        rounds = [gradients(model, t.batches.at(step)) for step in group]
        if len(group) < K:
            break
        for i, (name, p) in enumerate(model.named_parameters()):
            p.grad = _sum([g[i] for g in rounds]) * (1 / K if name in LATE | HEAD else factor)
        optimizer.param_groups[0]["lr"] = rates(t)(group[-1])
        optimizer.step()
    assert_equal_weights(t.model, model)


@pytest.mark.parametrize("K", [3, 5])
@pytest.mark.parametrize("gamma", ["sum", "mean"])
@pytest.mark.parametrize("state", ["copy", "reset"])
def test_late_phase_is_algorithm_1(K: int, gamma: str, state: str) -> None:
    changes = {"members": K, "base_gradient": gamma, "optimizer_state": state}
    t = finished("late-phase", **{f"late_phase__{key}": value for key, value in changes.items()})
    model, optimizer = literal_model(t)
    reference = Reference(model, optimizer, LATE | HEAD, K, base_gradient=gamma, optimizer_state=state)
    reference.start()
    for step in range(round(0.5 * t.total), t.total):
        optimizer.param_groups[0]["lr"] = rates(t)(step)
        x, y = t.batches.at(step)
        reference.step(lambda member, x=x, y=y: F.cross_entropy(member(x), y))
    average = reference.average().state_dict()
    for name, value in t.model.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-5)


# Those that add no weights of their own.
SAME_AT_ONE = [
    "late-phase",
    "late-phase-norm",
    "late-phase-full",
    "late-phase-from-start",
    "late-phase-matched-decay",
    "twin",
    "k-batch",
    "lr-over-k",
    "decay-over-k",
]


@pytest.mark.parametrize("method", SAME_AT_ONE)
def test_with_one_member_every_method_is_plain_training_bit_for_bit(method: str) -> None:
    base = finished("base", late_phase__members=1)
    assert_equal_weights(finished(method, late_phase__members=1).model, base.model)


# The first network of a deep ensemble is plain training.
@pytest.mark.parametrize("method", [name for name in EVERY_TRAINING if name not in ("base", "deep-ensemble")])
def test_every_method_differs_from_plain_training_after_its_start_only(method: str) -> None:
    base, other = trajectory("base"), trajectory(method)
    if other.start:
        base.run(other.start)
        other.run(other.start)
        assert_equal_weights(base.model, other.model)
    base.run(base.total)
    other.run(other.total)
    assert not torch.equal(base.model.classifier.weight, other.model.classifier.weight)  # type: ignore[union-attr]


def test_late_phase_from_the_start_is_late_phase_with_t0_at_zero() -> None:
    assert_equal_weights(finished("late-phase-from-start").model, finished("late-phase", late_phase__start=0.0).model)


@pytest.mark.parametrize("method", ["late-phase", "twin"])
def test_late_weights_can_have_a_weight_decay_of_their_own(method: str) -> None:
    t = finished(method, late_phase__weight_decay=0.005)
    base, late = t.optimizer.param_groups
    assert (base["weight_decay"], late["weight_decay"]) == (5e-4, 0.005)
    names = {name for name, p in t.model.named_parameters() if any(p is q for q in late["params"])}
    assert names == LATE | HEAD
    same = finished(method, late_phase__weight_decay=5e-4)
    assert_equal_weights(same.model, finished(method).model)
    assert not torch.equal(same.model.classifier.weight, t.model.classifier.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["swa", "late-phase+swa", "twin+swa"])
def test_swa_is_the_mean_of_the_last_epochs_with_statistics_of_an_augmented_pass(method: str) -> None:
    t, watched = trajectory(method), trajectory(parse_method(method)[0].name)
    snapshots = []
    for epoch in range(1, 7):
        watched.run(epoch * t.batches.per_epoch)
        if epoch > 3:
            snapshots.append({name: v.double().clone() for name, v in watched.model.state_dict().items()})
    t.run(t.total)
    weights = t.readings[0].weights()
    model = predictor_of(t, method).model
    for name in weights:
        mean = _sum([s[name] for s in snapshots]) / 3
        if "num_batches" not in name:
            assert torch.equal(weights[name], mean.float())
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(model.state_dict()[name], mean.float())
    # The first layer's statistics are those of its input over one augmented pass of another shuffle.
    images = torch.cat([x for x, _ in t.batches.epoch(6)])
    activations = model.features[0](images)  # type: ignore[index,operator]
    norm = model.features[1]  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, activations.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, activations.var(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_swa_of_a_training_of_one_epoch_is_its_last_model() -> None:
    t = finished("swa", training__epochs=1, swa__start=0.9)
    assert_same(t.readings[0].weights(), dict(t.model.state_dict()))


def test_reading_a_model_off_does_not_change_the_training() -> None:
    assert_equal_weights(finished("late-phase+swa").model, finished("late-phase").model)


def test_the_twin_refuses_families_that_add_weights() -> None:
    with pytest.raises(ExperimentError, match="adds weights to the model: there is no twin of it"):
        finished("twin", late_phase__weights="[rank-one]")


def test_rank_one_late_phase_weights_train_and_fold_into_the_plain_model() -> None:
    t = finished("late-phase", late_phase__weights="[rank-one]")
    plain = t.fresh_model()
    plain.load_state_dict(t.model.state_dict(), strict=True)
    x = t.batches.at(0)[0]
    torch.testing.assert_close(t.model.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)


def test_the_learning_rate_follows_the_schedule_minibatch_by_minibatch() -> None:
    t = trajectory("base")
    seen: list[float] = []
    t.run(t.total, on_step=lambda _: seen.append(t.optimizer.param_groups[0]["lr"]))
    assert seen == [rates(t)(step) for step in range(t.total)]


def test_bfloat16_and_channels_last_train_a_model_close_to_the_plain_one() -> None:
    losses = []
    for precision, layout in (("float32", False), ("float32", True), ("bfloat16", True)):
        records: list[dict[str, float]] = []
        t = trajectory("late-phase", tiny_recipe(compute__precision=precision, compute__channels_last=layout))
        t.run(t.total, on_epoch=records.append)
        assert t.model.classifier.weight.dtype == torch.float32  # type: ignore[union-attr]
        losses.append(records[1]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] == pytest.approx(losses[0], rel=0.05)
    assert losses[2] != losses[1]


def test_methods_are_named_combined_and_suggested() -> None:
    assert parse_method("swa")[0] is METHODS["base"]
    assert label_of("late-phase+swa") == "late-phase + SWA"
    assert label_of("swa") == "SWA"
    assert {"base", "swa", "late-phase", "late-phase+swa", "twin", "k-batch", "lr-over-k"} <= set(method_names())
    with pytest.raises(ExperimentError, match="unknown method 'late-fase'; did you mean late-phase"):
        parse_method("late-fase")


def test_a_new_method_needs_nothing_but_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frozen(Method):
        name, label, summary = "frozen", "frozen", "stands still in the last quarter"

        @property
        def start(self) -> float:
            return 0.75

        @property
        def rate(self) -> float:
            return 0.0

    monkeypatch.setitem(METHODS, "frozen", Frozen)
    recipe = tiny_recipe()
    legs = plan_seed(recipe, ["base", "frozen", "late-phase"], 0, 48, Path("x"))
    assert [(leg.training, leg.begin, leg.until) for leg in legs] == [
        ("base", 0, 36),
        ("base", 36, 48),
        ("frozen", 36, 48),
        ("late-phase", 24, 48),
    ]
    t = trajectory("frozen", recipe)
    t.run(36)
    before = t.model.classifier.weight.clone()  # type: ignore[union-attr,operator]
    t.run(48)
    assert torch.equal(before, t.model.classifier.weight)  # type: ignore[union-attr]


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    recipe = tiny_recipe()
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, lr=1e30))
    t = trajectory("base", recipe)
    with pytest.raises(ExperimentError, match=r"the loss of base, seed 0, became (nan|inf) in epoch 1; the last"):
        t.run(t.total)


def _sum(tensors: list[Tensor]) -> Tensor:
    """In the order in which backward adds them up."""
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total


def test_the_literal_model_is_the_library_s_small_cnn() -> None:
    names = {name for name, _ in trajectory("base").model.named_parameters()}
    assert names >= LATE | HEAD
    model = trajectory("base").model
    assert set(latephase.LatePhase(model, weights=["norm", "head"]).late_names()) == LATE | HEAD


def test_a_start_left_to_the_signal_is_late_phase_with_t0_where_the_signal_spoke_up() -> None:
    changes = {"training__epochs": 12, "data__subset": 96}
    t = finished("late-phase", late_phase__start="auto", **changes)
    started = t.method.started
    assert started is not None
    assert 0.05 * t.total <= started < t.total
    same = finished("late-phase", late_phase__start=(started + 1e-6) / t.total, **changes)
    assert same.start == started
    for name, value in same.model.state_dict().items():
        torch.testing.assert_close(t.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_signal_resumes_and_controls_have_none(tmp_path: Path) -> None:
    recipe = tiny_recipe(late_phase__start="auto", training__epochs=12)
    whole = trajectory("late-phase", recipe)
    whole.run(whole.total)
    for stop in (10, 50):
        first, second = trajectory("late-phase", recipe), trajectory("late-phase", recipe)
        first.run(stop)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        second.run(second.total)
        assert second.method.started == whole.method.started
        assert_equal_weights(second.model, whole.model)
    with pytest.raises(ExperimentError, match=r"late_phase\.start = auto: method twin needs a fraction"):
        plan_seed(recipe, ["late-phase", "twin"], 0, 96, tmp_path)
    from_start = trajectory("late-phase-from-start", recipe)
    from_start.run(1)
    assert from_start.method.started == 0
