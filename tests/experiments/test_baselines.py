"""The baselines beside late-phase weights, each against a literal implementation of its definition."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from experiment_helpers import assert_same, tiny_recipe, trajectory
from torch import Tensor, nn

from latephase.evaluation import evaluate_model
from latephase.experiments.errors import ExperimentError
from latephase.experiments.methods import label_of, method_names, parse_method, summary_of
from latephase.experiments.outcome import predictor_of
from latephase.experiments.schedule import learning_rate
from latephase.experiments.trajectory import Trajectory


def finished(method: str, **changes: object) -> Trajectory:
    t = trajectory(method, tiny_recipe(**changes))
    t.run(t.total)
    return t


def literal(
    t: Trajectory, seed: int = 0, after: Callable[[int, nn.Module], None] = lambda step, model: None
) -> nn.Module:
    """Plain SGD over the whole training, with something done after every step."""
    model = t.fresh_model(seed)
    batches = t.batches.with_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    for step in range(t.total):
        x, y = batches.at(step)
        optimizer.param_groups[0]["lr"] = learning_rate(t.recipe.training, step / t.total)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        after(step + 1, model)
    return model


def plain(t: Trajectory) -> list[tuple[Tensor, Tensor]]:
    return list(t.task.test())


@pytest.mark.parametrize("every", [1, 4, 5])
def test_ema_is_the_recursion_over_the_weights(every: int) -> None:
    t = finished("ema", ema__decay=0.9, ema__every=every)
    average: dict[str, Tensor] = {}

    def after(step: int, model: nn.Module) -> None:
        if step % every and step < 48:
            return
        for name, value in model.state_dict().items():
            wide = value.double()
            average[name] = 0.9**every * average[name] + (1 - 0.9**every) * wide if name in average else wide.clone()

    literal(t, after=after)
    ours = t.readings[0].weights()  # type: ignore[attr-defined]
    for name, value in average.items():
        if "num_batches" not in name:
            torch.testing.assert_close(ours[name].double(), value, rtol=1e-5, atol=1e-6)
    # Statistics belong to the weights they were gathered with: they are computed anew.
    model = predictor_of(t, "ema").model
    assert torch.equal(model.classifier.weight, ours["classifier.weight"])  # type: ignore[union-attr,arg-type]
    assert not torch.equal(model.features[1].running_mean, ours["features.1.running_mean"])  # type: ignore[index]


def test_lookahead_is_the_recursion_over_slow_and_fast_weights() -> None:
    t = finished("lookahead", lookahead__every=5, lookahead__rate=0.3)
    slow = {name: p.detach().clone() for name, p in t.fresh_model().named_parameters()}

    def after(step: int, model: nn.Module) -> None:
        if step % 5 == 0 or step == 48:
            for name, p in model.named_parameters():
                slow[name] += 0.3 * (p.detach() - slow[name])
                p.data.copy_(slow[name])

    model = literal(t, after=after)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(t.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_a_deep_ensemble_is_networks_trained_apart_and_costs_their_number() -> None:
    t = finished("deep-ensemble", deep_ensemble__networks=3)
    assert t.method.cost == 3
    networks = [literal(t, seed) for seed in (0, 1000, 2000)]
    saved = t.method.weights(t)
    for i, network in enumerate(networks):
        ours = {name.removeprefix(f"{i}."): v for name, v in saved.items() if name.startswith(f"{i}.")}
        assert_same(ours, dict(network.state_dict()))
    x, _ = plain(t)[0]
    p = torch.stack([network.eval()(x).double().softmax(-1) for network in networks]).mean(0)
    torch.testing.assert_close(predictor_of(t, "deep-ensemble").logits(x).exp(), p, rtol=1e-6, atol=1e-9)


def test_an_ensemble_is_scored_by_its_mean_probabilities() -> None:
    t = finished("deep-ensemble")
    predictor = predictor_of(t, "deep-ensemble")
    scores = predictor.score(plain(t)).compute()
    nll = [F.nll_loss(predictor.logits(x), y, reduction="sum") for x, y in plain(t)]
    assert scores["nll"] == pytest.approx(float(sum(nll)) / t.task.sizes["test"])
    held_out = t.task.validation()
    assert held_out is not None
    assert t.evaluate() == predictor.score(held_out).compute()
    assert scores != evaluate_model(t.model, plain(t)).compute()


def test_dropout_drops_in_training_and_not_in_use() -> None:
    t = finished("dropout", dropout__rate=0.5)
    layers = [m for m in t.model.modules() if isinstance(m, nn.Dropout)]
    assert layers
    assert {layer.p for layer in layers} == {0.5}
    assert all(m.p == 0 for m in trajectory("base").model.modules() if isinstance(m, nn.Dropout))
    x, _ = plain(t)[0]
    predictor = predictor_of(t, "dropout")
    assert torch.equal(predictor.logits(x), predictor.logits(x))
    t.model.train()
    assert not torch.equal(t.model(x), t.model(x))


def test_mc_dropout_averages_passes_with_dropout_and_leaves_no_trace() -> None:
    t = finished("mc-dropout", dropout__rate=0.5, dropout__passes=4)
    before = copy.deepcopy(t.model.state_dict())
    predictor = predictor_of(t, "mc-dropout")
    x, _ = plain(t)[0]
    state = torch.get_rng_state()
    assert predictor.members is not None
    passes = predictor.members(x)
    assert passes.shape == (4, len(x), 10)
    assert not torch.equal(passes[0], passes[1])
    torch.testing.assert_close(predictor.logits(x), passes.double().softmax(-1).mean(0).log(), rtol=1e-9, atol=1e-12)
    assert torch.equal(state, torch.get_rng_state())
    assert t.model.training
    assert_same(dict(before), dict(t.model.state_dict()))
    assert_same(dict(t.model.state_dict()), dict(finished("dropout", dropout__rate=0.5).model.state_dict()))


def test_dropout_refuses_a_model_without_dropout_layers() -> None:
    t = trajectory("dropout")
    t.model = nn.Linear(64, 10)
    with pytest.raises(ExperimentError, match="method dropout: Linear has no dropout layer"):
        t.method.attach(t)


@pytest.mark.parametrize(("method", "count"), [("batch-ensemble-4", 4), ("batch-ensemble-10", 10)])
def test_batch_ensemble_is_a_network_of_weights_with_rank_one_factors_for_each_member(method: str, count: int) -> None:
    t = finished(method)
    x, _ = plain(t)[0]
    predictor = predictor_of(t, method)
    assert predictor.members is not None
    members = predictor.members(x)
    state = t.method.weights(t)
    for k in range(count):
        network = t.fresh_model()
        own = {}
        for name, value in network.state_dict().items():
            own[name] = state[name]
            layer = name.rpartition(".")[0]
            if f"{layer}.factor_in" in state:
                r, s = state[f"{layer}.factor_out"][k], state[f"{layer}.factor_in"][k]
                if name.endswith("weight"):
                    outer = r[:, None] * s[None]
                    own[name] = state[name] * outer.view(*outer.shape, *[1] * (value.ndim - 2))
                else:
                    own[name] = state[name] + state[f"{layer}.member_bias"][k]
        network.load_state_dict(own)
        torch.testing.assert_close(members[k], network.eval()(x), rtol=1e-4, atol=1e-4)


def test_batch_ensemble_deals_a_minibatch_out_and_its_factors_do_not_decay() -> None:
    t = trajectory("batch-ensemble-4", tiny_recipe())
    t.run(3)
    # Minibatches of 6: the fourth begins with member 18 mod 4 = 2.
    seen = []
    handle = t.model.register_forward_pre_hook(lambda *_: seen.append(t.method._member_of.tolist()))
    t.run(4)
    handle.remove()
    assert seen == [[2, 3, 0, 1, 2, 3]]
    base, factors = t.optimizer.param_groups
    assert (base["weight_decay"], factors["weight_decay"]) == (5e-4, 0.0)
    names = {name for name, p in t.model.named_parameters() if any(p is q for q in factors["params"])}
    assert names == {name for name, _ in t.model.named_parameters() if "factor" in name or "member_bias" in name}
    assert len(names) == 7


def test_the_decay_controls_change_the_base_weights_decay_alone() -> None:
    for method, expected in (("late-phase-matched-decay", 3 * 5e-4), ("decay-over-k", 5e-4 / 3)):
        t = finished(method)
        base, late = t.optimizer.param_groups
        assert base["weight_decay"] == pytest.approx(expected)
        assert late["weight_decay"] == 5e-4
        names = {name for name, p in t.model.named_parameters() if any(p is q for q in late["params"])}
        assert names == {"features.1.weight", "features.1.bias", "features.5.weight", "features.5.bias"} | {
            "classifier.weight",
            "classifier.bias",
        }


def test_late_phase_families_replicate_what_they_say() -> None:
    sizes = {}
    for method in ("late-phase-norm", "late-phase", "late-phase-full", "late-phase-rank-one"):
        t = finished(method)
        assert t.method.late is not None
        sizes[method] = sum(p.numel() for p in t.method.late.late_parameters())
        members = t.method.members(t)
        assert members is not None
        assert members(plain(t)[0][0]).shape[0] == 3
        t.fresh_model().load_state_dict(t.model.state_dict(), strict=True)
    total = sum(p.numel() for p in trajectory("base").model.parameters())
    assert sizes["late-phase-norm"] == 16
    assert sizes["late-phase-norm"] < sizes["late-phase"] < sizes["late-phase-full"] == total
    # Rows plus columns of the two convolutions and the head.
    assert sizes["late-phase-rank-one"] == (4 + 1) + (4 + 4) + (10 + 64)


def test_what_predicts_as_an_ensemble_is_not_averaged_over_time() -> None:
    names = method_names()
    assert "mc-dropout" in names
    assert parse_method("mc-dropout")[0].name == "dropout"
    assert label_of("mc-dropout") == "MC-dropout"
    assert {"dropout+swa", "lookahead+ema", "late-phase-norm+swa"} <= set(names)
    assert not {"deep-ensemble+swa", "batch-ensemble-4+ema", "late-phase+mc-dropout"} & set(names)
    assert len(names) == len(set(names))
    for name in names:
        assert summary_of(name, tiny_recipe())
        assert math.isfinite(parse_method(name)[0](tiny_recipe()).cost)


def test_the_summary_of_swa_says_which_weights_are_averaged() -> None:
    assert "weights at the ends of the last epochs, statistics" in summary_of("swa", tiny_recipe())
    often = tiny_recipe(swa__every=20, swa__start=0.75)
    assert "mean of the weights every 20 minibatches from 75% of training on, statistics" in summary_of("swa", often)
    assert "every minibatch from 75%" in summary_of("late-phase+swa", tiny_recipe(swa__every=1, swa__start=0.75))


def test_the_prediction_of_late_phase_training_is_the_averaged_model_s_in_any_mode() -> None:
    t = finished("late-phase")
    x, _ = plain(t)[0]
    average = t.fresh_model()
    average.load_state_dict(t.model.state_dict())
    expected = average.eval()(x)
    t.model.train()
    torch.testing.assert_close(predictor_of(t, "late-phase").logits(x), expected, rtol=1e-4, atol=1e-5)
    assert t.model.training
