"""The benchmark of samples to an accuracy: its networks, its training, its search, at sizes of seconds."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import latephase
from latephase.experiments.data import load_split

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import fast_training
import time_to_accuracy
from fast_networks import FastNetwork, Whitening
from fast_training import PRESETS, FastTrajectory
from time_to_accuracy import OWN, Runs, Setting, grid, interpolated, tune


def tiny(name: str = "small") -> fast_training.Preset:
    preset = PRESETS[name]
    recipe = replace(preset.recipe, compute=replace(preset.recipe.compute, device="cpu"))
    return fast_training.tiny(replace(preset, recipe=recipe))


def trajectory(preset: fast_training.Preset, method: str, epochs: int = 2, **changes: object) -> FastTrajectory:
    setting = Setting(method, tuple(changes.items()))
    recipe = setting.applied(preset.recipe, epochs)
    kind = time_to_accuracy.parse_method(method)[0].name
    return FastTrajectory(preset, recipe, load_split(recipe.data, 0), 0, fast_training.TRAININGS[kind](recipe), [])


def test_whitened_patches_have_variance_one_and_are_uncorrelated() -> None:
    x = torch.randn(40, 3, 9, 9, dtype=torch.float64)
    x = (x + 2 * x.roll(1, dims=3) + x.mean(dim=1, keepdim=True)).float()  # neighbours and channels go together
    outputs = Whitening(x, floor=0.0)(x).detach().transpose(0, 1).flatten(1).double()
    assert outputs.shape[0] == 24
    torch.testing.assert_close(outputs[:12].cov(), torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(outputs[12:], -outputs[:12])


def test_convolutions_begin_as_the_identity() -> None:
    network = FastNetwork(torch.randn(8, 3, 32, 32), [32, 32], depth=2)
    second = network.blocks[1].convs[1]
    x = torch.randn(2, 32, 4, 4)
    torch.testing.assert_close(second(x), x)
    assert not network.whitening.weight.requires_grad


@pytest.mark.parametrize(("name", "millions"), [("94", 1.97), ("96", 9.92)])
def test_the_large_presets_have_the_networks_they_say(name: str, millions: float) -> None:
    with torch.device("cpu"):
        network = PRESETS[name].network(torch.randn(4, 3, 32, 32))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_late_phase_training_of_the_benchmark_is_that_of_a_plain_loop() -> None:
    preset = tiny()
    ours = trajectory(preset, "late-phase", 4, **{"training.lr": 0.05})
    recipe = ours.recipe
    model, biases = ours.fresh_model(), []
    for name, parameter in model.named_parameters():
        if "norms" in name and name.endswith("bias"):
            biases.append(parameter)
    others = [p for p in model.parameters() if p.requires_grad and all(p is not bias for bias in biases)]
    optimizer = torch.optim.SGD(
        [{"params": others}, {"params": biases}], lr=0.05, momentum=0.85, nesterov=True, weight_decay=1.3e-3, fused=True
    )
    late = latephase.LatePhase(model, members=2)
    late.optimizer(optimizer)
    total = ours.total
    for step in range(total):
        if step == round(recipe.late_phase.start * total):
            late.start()
        done = step / total
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (done / 0.2 if done < 0.2 else 1 - (done - 0.2) / 0.8 * 0.93)
        x, y = ours.batches.at(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y, label_smoothing=0.2).backward()
        optimizer.step()
    ours.run(total)
    assert late.rounds == 6
    for name, value in late.averaged_state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_biases_learn_faster_and_decay_alike() -> None:
    preset = tiny("94")
    t = trajectory(preset, "base")
    others, biases = t.optimizer.param_groups
    assert biases["rate"] == 64
    assert biases["weight_decay"] * 64 == pytest.approx(others["weight_decay"])
    t.run(2)
    assert biases["lr"] == pytest.approx(64 * others["lr"])
    assert {id(p) for g in t.optimizer.param_groups for p in g["params"]} == {
        id(p) for name, p in t.model.named_parameters() if name != "whitening.weight"
    }


def test_the_slow_weights_follow_more_and_more_slowly() -> None:
    preset = tiny()
    t = trajectory(preset, "lookahead", 3, **{"lookahead.every": 2, "training.lr": 0.1})
    plain = trajectory(preset, "base", 3, **{"training.lr": 0.1})
    plain.run(0)
    slow = [p.detach().clone() for p in plain.model.parameters()]
    for step in range(t.total):
        plain.run(step + 1)
        done = step + 1
        if done % 2 == 0 or done == t.total:
            keep = 1.0 if done == t.total else 0.95**5 * (done / t.total) ** 3
            for s, p in zip(slow, plain.model.parameters(), strict=True):
                s.mul_(keep).add_(p.detach(), alpha=1 - keep)
                p.data.copy_(s)
    t.run(t.total)
    for ours, theirs in zip(t.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_every_method_has_as_many_settings_and_readings_share_a_training() -> None:
    settings = grid(PRESETS["small"], list(OWN))
    assert {sum(s.method == method for s in settings) for method in OWN} == {4}
    shared = {s.training for s in settings if s.method in ("base", "swa", "ema")}
    assert len(shared) == 4  # two rates, two ends of the schedule
    late = {s.training for s in settings if s.method.startswith("late-phase")}
    assert len(late) == 4
    recipe = settings[-1].applied(PRESETS["small"].recipe, 7)
    assert (recipe.training.epochs, recipe.training.lr, recipe.late_phase.start) == (7, 0.3, 0.75)


class Curves(Runs):
    """Accuracies by a formula instead of training."""

    def train(self, settings: object, epochs: int, seed: int, tuning: bool) -> None:
        for s in settings:  # type: ignore[attr-defined]
            better = {"base": 0, "late-phase": 4}[s.method] + 2 * (dict(s.changes)["training.lr"] == 0.3)
            self.asked.append((s.method, epochs))
            self.done[self.key(s, epochs, seed)] = {"accuracy": 40 + epochs / 2 + better + seed % 2, "seconds": 1.0}


def test_the_shortest_length_is_found_and_nothing_is_trained_beyond_it() -> None:
    runs = Curves(PRESETS["small"], None)
    runs.asked = []
    found = tune(runs, ["base", "late-phase"], [1000, 1001], 52.0)
    # With the better rate base has 42.5 + epochs / 2 on average, and late-phase 46.5 + epochs / 2.
    assert {m: (f["epochs"], f["reached"]) for m, f in found.items()} == {"base": (23, True), "late-phase": (11, True)}
    assert all(dict(f["setting"].changes)["training.lr"] == 0.3 for f in found.values())
    assert max(epochs for method, epochs in runs.asked if method == "late-phase") == 11
    assert interpolated(found["base"]["curve"], 52.0) == pytest.approx(19)
    assert interpolated(found["late-phase"]["curve"], 52.0) == pytest.approx(11)
    found = tune(runs, ["base"], [1000, 1001], 99.0)
    assert (found["base"]["reached"], found["base"]["epochs"]) == (False, 32)
    assert interpolated(found["base"]["curve"], 99.0) is None


@pytest.mark.parametrize("name", ["94", "96", "small"])
def test_the_command_tunes_measures_resumes_and_keeps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, runs = tmp_path / "out.json", tmp_path / "runs.jsonl"
    methods = list(OWN) if name == "small" else ["base", "late-phase+swa"]
    command = ["time_to_accuracy.py", "--preset", name, "--tiny", "--device", "cpu", "--seeds", "2"]
    command += ["--tuning-seeds", "1", "--runs", str(runs), "--json", str(out), "--methods", *methods]
    monkeypatch.setattr(sys, "argv", command)
    time_to_accuracy.main()
    kept = json.loads(out.read_text())
    assert {"command", "commit", "device", "torch"} <= set(kept["environment"])
    assert [row["method"] for row in kept["rows"]] == methods
    for row in kept["rows"]:
        assert not row["reached"]
        assert row["epochs"] == 2
        assert row["samples"] == 2 * 24
        assert row["test"]["n"] == 2
        assert 0 < row["test"]["mean"] <= 100
        assert row["seconds, median"] > 0
    assert kept["rows"][0]["minus base, at base's epochs"]["mean"] == 0
    monkeypatch.setattr(sys, "argv", ["time_to_accuracy.py", "--show", str(out)])
    capsys.readouterr()
    time_to_accuracy.main()
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(methods)
    assert {row.count("|") for row in table} == {9}
    assert "training.lr" in table[2]
    assert "not within 2" in table[2]
    monkeypatch.setattr(sys, "argv", command)
    lines = runs.read_text().splitlines()
    runs.write_text("\n".join(lines[:-1]) + "\n")
    capsys.readouterr()
    time_to_accuracy.main()  # trains the one run that is missing, and no other
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]) == 1
    again = json.loads(out.read_text())
    for before, after in zip(kept["rows"], again["rows"], strict=True):
        assert before["test, by seed"] == after["test, by seed"]
