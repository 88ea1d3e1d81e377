"""Training on text from end to end: states that are carried, forks and resumption, every method, and the report."""

import html
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_helpers import assert_same
from torch import Tensor

from latephase.cli import main
from latephase.experiments.config import Recipe
from latephase.experiments.errors import ExperimentError
from latephase.experiments.legs import run_leg
from latephase.experiments.methods import METHODS, READINGS, parse_method
from latephase.experiments.plan import plan_seed
from latephase.experiments.recipe import load_recipe
from latephase.experiments.report.numbers import MINUS, difference, mean
from latephase.experiments.report.page import render, report
from latephase.experiments.report.sentences import controls, findings, headline
from latephase.experiments.report.tables import throughput_table
from latephase.experiments.study import compare
from latephase.experiments.text import load_corpus
from latephase.experiments.trajectory import Trajectory

TINY = {
    "model.name": "lstm-6",
    "text.length": 4,
    "text.window": 32,
    "text.context": 8,
    "training.batch_size": 3,
    "training.epochs": 2,
    "late_phase.start": 0.6,
    "late_phase.members": 3,
    "swa.start": 0.5,
    "deep_ensemble.networks": 2,
    "dropout.passes": 2,
    "ema.every": 2,
}
TRANSFORMER = {"model.name": "transformer-1-32", "text.order": "windows", "training.optimizer": "adamw"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 300 characters: 22 minibatches an epoch, the late phase begins at minibatch 26."""
    path = tmp_path_factory.mktemp("text") / "short.txt"
    path.write_bytes(bytes(load_corpus().raw[1000:1300].tolist()))
    return path


def recipe_of(file: Path, **changes: Any) -> Recipe:
    values = TINY | {"data.train": file} | {key.replace("__", "."): value for key, value in changes.items()}
    return load_recipe("text-small", [f"--{key}={value}" for key, value in values.items()])


def trajectory(method: str, recipe: Recipe) -> Trajectory:
    training, reading = parse_method(method)
    readings = [READINGS[reading.name](recipe)] if reading else []
    return Trajectory(recipe, load_corpus(recipe.data.train), 0, training(recipe), readings)


def seen(t: Trajectory, until: int | None = None) -> list[tuple[Tensor, int, Any]]:
    """Train, and note what each forward pass of training read, for whom, and the state it went on from."""
    found = []

    def note(_module: object, args: tuple[Any, ...]) -> None:
        if t.model.training:
            state = None if args[1] is None else tuple(part.clone() for part in args[1])
            found.append((args[0].clone(), t.task.slot(t.method.turn), state))

    handle = t.model.register_forward_pre_hook(note)
    t.run(t.total if until is None else until)
    handle.remove()
    return found


def test_a_shared_state_goes_on_from_minibatch_to_minibatch_and_ends_with_the_epoch(file: Path) -> None:
    t = trajectory("late-phase-rank-one", recipe_of(file))
    passes = seen(t)
    per_epoch = t.batches.per_epoch
    assert (per_epoch, t.total, t.start) == (22, 44, 26)
    for step, (x, slot, state) in enumerate(passes):
        assert torch.equal(x, t.batches.at(step)[0])
        assert slot == 0
        assert (state is None) == (step % per_epoch == 0)
        assert state is None or not state[0].requires_grad


def test_the_state_that_is_carried_is_the_last_one_of_the_minibatch_before(file: Path) -> None:
    t = trajectory("base", recipe_of(file))
    t.run(5)
    before = {name: value.clone() for name, value in t.model.state_dict().items()}
    held = t.task.state_dict()["states"][0]
    (_, _, state), *_ = seen(t, 6)
    assert_same(state, held)
    plain = t.fresh_model()
    plain.load_state_dict(before)
    with torch.no_grad():
        _, expected = plain(t.batches.at(5)[0], state)
    assert_same(t.task.state_dict()["states"][0], expected)


def test_streams_of_their_own_give_each_member_another_part_of_the_text_and_its_own_state(file: Path) -> None:
    t = trajectory("late-phase-rank-one", recipe_of(file, text__state="own", training__epochs=4))
    passes = seen(t)
    begin, K = t.start, 3
    read: dict[int, list[Tensor]] = {}
    fresh: dict[int, list[bool]] = {}
    for x, slot, state in passes[begin:]:
        read.setdefault(slot, []).append(x)
        fresh.setdefault(slot, []).append(state is None)
    assert set(read) == set(range(K))
    for k in range(K):
        first = (begin + k * t.batches.per_epoch // K) % t.batches.per_epoch
        for turn, x in enumerate(read[k]):
            number = (first + turn) % t.batches.per_epoch
            assert torch.equal(x, t.batches.at(number)[0])
            assert fresh[k][turn] == (turn == 0 or number == 0)
    assert len({str(xs[0].tolist()) for xs in read.values()}) == K


def test_without_a_carried_state_every_minibatch_begins_at_zero(file: Path) -> None:
    t = trajectory("late-phase-rank-one", recipe_of(file, text__state="zero"))
    assert all(state is None for _, _, state in seen(t))
    assert t.task.state_dict()["states"] == []


@pytest.mark.parametrize("state", ["shared", "own"])
def test_a_training_resumed_in_the_middle_of_an_epoch_ends_in_the_same_bits(file: Path, state: str) -> None:
    recipe = recipe_of(file, text__state=state)
    whole = trajectory("late-phase-rank-one", recipe)
    whole.run(whole.total)
    first = trajectory("late-phase-rank-one", recipe)
    for stop in (5, 28, 33):
        first.run(stop)
        saved = torch.load(_stored(first.state_dict()), weights_only=True)
        first = trajectory("late-phase-rank-one", recipe)
        first.load_state_dict(saved)
    first.run(first.total)
    assert_same(first.model.state_dict(), whole.model.state_dict())
    assert_same(first.task.state_dict(), whole.task.state_dict())


def _stored(state: dict[str, Any]) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("state", ["shared", "own"])
def test_a_forked_training_equals_one_from_the_start_bit_for_bit(file: Path, tmp_path: Path, state: str) -> None:
    recipe = recipe_of(file, text__state=state)
    methods = ["base", "late-phase-rank-one", "lr-over-k"]
    legs = plan_seed(recipe, methods, 0, 44, tmp_path)
    assert legs[0].forks == (26,)
    for leg in legs:
        run_leg(leg)
    for method in methods:
        alone = trajectory(method, recipe)
        alone.run(alone.total)
        result = json.loads((tmp_path / method / "result.json").read_text())
        validation = alone.evaluate()
        assert result["validation"] == validation
        assert set(result["test"]) == {"bpc", "accuracy", "nll", "ece", "brier"}


IMPOSSIBLE = ("batch-ensemble-4", "batch-ensemble-10")
# An LSTM has no norms and no equal layers between the first and the last, and the LSTM here adapters are too large for.
NEEDS = {
    "late-phase-norm": TRANSFORMER,
    "late-phase-hypernetwork": TRANSFORMER,
    "late-phase-lora": TRANSFORMER,
    "lora": TRANSFORMER,
    "twin": {"late_phase.weights": "[head]"},
    "decay-over-k": {"late_phase.weights": "[head]"},
}


@pytest.mark.parametrize("method", [*METHODS, "swa", "ema", "mc-dropout"])
def test_every_method_trains_on_text_or_says_why_not(method: str, file: Path) -> None:
    changes = {"training.epochs": 1, "training.batch_size": 8} | NEEDS.get(method, {})
    recipe = recipe_of(file, **changes)
    t = trajectory(method, recipe)
    if method in IMPOSSIBLE:
        with pytest.raises(ExperimentError, match="deals out images; it cannot train on characters"):
            t.run(t.total)
        return
    records: list[dict[str, Any]] = []
    t.run(t.total, records.append)
    assert records[-1]["step"] == t.total == 8
    assert records[-1]["bpc"] == pytest.approx(records[-1]["nll"] / math.log(2))
    assert 0 < records[-1]["bpc"] < 8


@pytest.fixture(scope="module")
def results(file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    methods = "[base,swa,rank-one,late-phase-rank-one,late-phase-rank-one+swa,lr-over-k]"
    recipe = recipe_of(file, methods=methods, seeds=2, title="a <tiny> text")
    folder = tmp_path_factory.mktemp("runs") / "run"
    return compare({"tiny": recipe}, folder, command="latephase compare tiny", workers=1)


@pytest.fixture(scope="module")
def page(results: dict[str, Any]) -> str:
    return re.sub(r"<[^>]+>", " ", render(results))


def test_the_results_say_what_they_are_about(results: dict[str, Any]) -> None:
    setting = results["settings"][0]
    assert setting["kind"] == "characters"
    assert setting["metrics"] == ["bpc", "accuracy", "nll", "ece", "brier"]
    assert setting["characters"]["train"] == 270
    late = setting["methods"]["late-phase-rank-one"]
    for part in ("test", "validation", "ensemble", "member_mean"):
        assert late[part]["bpc"]["mean"] == pytest.approx(late[part]["nll"]["mean"] / math.log(2))
    pairs = {(c["method"], c["control"]) for c in setting["contrasts"]}
    assert pairs == {("late-phase-rank-one", "lr-over-k"), ("late-phase-rank-one", "rank-one")}
    own = setting["methods"]["base"]["seconds"]["own"]
    assert own["mean"] > 0
    assert setting["methods"]["base"]["per_second"]["n"] == 2


def test_the_page_speaks_of_bits_and_characters(results: dict[str, Any], page: str) -> None:
    setting = results["settings"][0]
    for method in setting["methods"].values():
        assert mean(method["test"]["bpc"], "bpc") in page
        assert mean(method["validation"]["bpc"], "bpc") in page
        for versus in method["against"].values():
            assert difference(versus["bpc"], "bpc") in page
    for words in ("bits per character", "plain Adam", "270 training, 15 validation and 15 test characters"):
        assert words in page
    said = page.partition("The recipe")[0]
    for words in ("image", "SGD", "NLL", "accuracy minus"):
        assert words not in said
    figure = next(f for f in report(results).figures() if f.name.endswith("-curves"))
    assert figure.heads[2] == "validation bits per character"
    assert figure.rows[0][2] == setting["methods"]["base"]["curve"]["bpc"][0]


def test_a_sample_of_each_model_is_shown_and_does_nothing(results: dict[str, Any]) -> None:
    text, altered = render(results), json.loads(json.dumps(results))
    methods = altered["settings"][0]["methods"]
    for name in ("base", "late-phase-rank-one"):
        sample = methods[name]["sample"]
        assert len(sample["text"]) >= 400
        assert f"<pre>{html.escape(sample['text'])}</pre>" in text
        assert html.escape(sample["prompt"]) in text
    methods["base"]["sample"]["text"] += "<b>bold</b>"
    assert "&lt;b&gt;bold&lt;/b&gt;</pre>" in render(altered)


def test_throughput_is_set_against_plain_training(results: dict[str, Any]) -> None:
    setting = results["settings"][0]
    table = throughput_table(setting)
    assert table is not None
    rows = {row[0]: row[1:] for row in table.rows}
    # Readings look at a training that is there already.
    assert set(rows) == {"base", "rank-1, no members", "late-phase, rank-1", "lr/K"}
    assert rows["base"][1] == "1.00"
    slow, plain = (setting["methods"][m]["per_second"]["mean"] for m in ("late-phase-rank-one", "base"))
    assert rows["late-phase, rank-1"][1] == f"{slow / plain:.2f}"


def paired(value: float, half: float) -> dict[str, Any]:
    return {"mean": value, "se": 0.01, "n": 3, "low": value - half, "high": value + half}


@pytest.mark.parametrize(
    ("value", "half", "sentence"),
    [
        (
            -0.03,
            0.01,
            "0.0300 bits per character better than plain Adam "
            f"(95% interval of the difference {MINUS}0.0400 to {MINUS}0.0200).",
        ),
        (
            0.03,
            0.01,
            "0.0300 bits per character worse than plain Adam (95% interval of the difference 0.0200 to 0.0400).",
        ),
        (-0.01, 0.02, f"not told apart: the difference is {MINUS}0.0100 [{MINUS}0.0300, +0.0100] bits per character."),
    ],
)
def test_fewer_bits_are_better(results: dict[str, Any], value: float, half: float, sentence: str) -> None:
    setting = json.loads(json.dumps(results["settings"][0]))
    late = setting["methods"]["late-phase-rank-one"]
    late["against"]["base"]["bpc"] |= paired(value, half)
    assert headline(setting).startswith("Late-phase weights (rank-1) ")
    assert headline(setting).endswith(sentence)
    for contrast in setting["contrasts"]:
        contrast |= paired(value, half)
    said = controls(setting) or ""
    assert said.count("so the members themselves add something") == (value == -0.03)
    assert said.count("so the control does better") == 2 * (value == 0.03)
    assert said.count("which does not tell the two apart") == 2 * (value == -0.01)
    assert "points" not in " ".join(findings(setting))


def test_other_families_are_named_beside_the_first(results: dict[str, Any]) -> None:
    setting = json.loads(json.dumps(results["settings"][0]))
    other = json.loads(json.dumps(setting["methods"]["late-phase-rank-one"])) | {"label": "late-phase, norms"}
    other["against"]["base"]["bpc"] |= paired(-0.02, 0.01)
    setting["methods"]["late-phase-norm"] = other
    expected = f"Against plain Adam stand late-phase, norms at {MINUS}0.0200 [{MINUS}0.0300, {MINUS}0.0100]* bits"
    assert any(sentence.startswith(expected) for sentence in findings(setting))


def test_a_grid_is_judged_by_bits_on_validation_text(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [f"--{key}={value}" for key, value in (TINY | {"data.train": file, "seeds": 1}).items()]
    grid = ["--grid", "training.lr=0.00001,0.01", "--methods=[base]", "--workers", "1"]
    assert main(["tune", "text-small", *grid, *options]) == 0
    tuned = json.loads(Path("runs/tune-text-small/tune.json").read_text())
    assert tuned["metric"] == "bpc"
    assert tuned["methods"]["base"]["best"] == "training.lr=0.01"
    assert "validation bits per character" in capsys.readouterr().out
    assert main(["tune", "text-small", *grid, "--metric", "auroc", *options]) == 2
    assert "unknown metric 'auroc'" in capsys.readouterr().err
