"""Studies from end to end: what they write, how they grow, and that processes change nothing."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_helpers import assert_same, tiny_recipe
from safetensors.torch import load_file

from latephase.evaluation import evaluate_model
from latephase.experiments.data import Batches, load_split
from latephase.experiments.errors import ExperimentError
from latephase.experiments.models import build_model
from latephase.experiments.recipe import load_recipe
from latephase.experiments.statistics import paired_difference, summarise
from latephase.experiments.study import compare, train

METHODS = "[base,swa,late-phase,late-phase+swa,twin,lr-over-k]"


def study(folder: Path, seeds: int = 2, methods: str = METHODS, workers: int = 1, **changes: Any) -> dict[str, Any]:
    recipe = tiny_recipe(methods=methods, seeds=seeds, **changes)
    return compare({"tiny": recipe}, folder, command="latephase compare tiny", workers=workers)


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    kept = {key: results[key] for key in ("kind", "command", "settings")}
    kept = json.loads(json.dumps(kept))
    for setting in kept["settings"]:
        for method in setting["methods"].values():
            del method["seconds"], method["per_second"]
    return kept


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "run"
    study(folder)
    return folder


def test_a_study_leaves_everything_that_is_promised(finished: Path) -> None:
    assert load_recipe(str(finished / "tiny" / "recipe.yaml")) == tiny_recipe(methods=METHODS, seeds=2)
    results = json.loads((finished / "results.json").read_text())
    assert results["command"] == "latephase compare tiny"
    assert {"commit", "date", "device", "versions", "seconds", "training_seconds"} <= set(results)
    for seed in (0, 1):
        for method in ("base", "swa", "late-phase", "late-phase+swa", "twin", "lr-over-k"):
            assert (finished / "tiny" / f"seed-{seed}" / method / "model.safetensors").exists()
    assert "</html>" in (finished / "report.html").read_text()
    assert not list(finished.rglob("*.part"))


def test_the_table_is_made_of_the_runs(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    methods = results["settings"][0]["methods"]

    def values(method: str, part: str, metric: str) -> list[float]:
        runs = [json.loads((finished / "tiny" / f"seed-{s}" / method / "result.json").read_text()) for s in (0, 1)]
        return [run[part][metric] for run in runs]

    for name, method in methods.items():
        for metric in ("accuracy", "nll", "ece", "brier"):
            ours = values(name, "test", metric)
            assert method["test"][metric] == summarise(ours)
            assert method["by_seed"][metric] == ours
            assert method["validation"][metric] == summarise(values(name, "validation", metric))
            for other in {"base", "swa"} - {name}:
                assert method["against"][other][metric] == paired_difference(ours, values(other, "test", metric))
    late = methods["late-phase"]
    assert late["ensemble"]["nll"] == summarise(values("late-phase", "ensemble", "nll"))
    assert len(late["disagreement"]) == 3
    assert methods["base"]["ensemble"] is None
    contrasts = {c["control"]: c for c in results["settings"][0]["contrasts"]}
    assert set(contrasts) == {"twin", "lr-over-k"}
    pair = paired_difference(values("late-phase", "test", "accuracy"), values("twin", "test", "accuracy"))
    assert contrasts["twin"] == {"method": "late-phase", "control": "twin"} | pair


@pytest.mark.parametrize("method", ["base", "swa", "late-phase", "late-phase+swa", "twin"])
def test_the_saved_model_loads_strictly_and_scores_what_the_result_says(finished: Path, method: str) -> None:
    recipe = tiny_recipe()
    folder = finished / "tiny" / "seed-1" / method
    split = load_split(recipe.data, 1)
    model = build_model(recipe.model, classes=10, channels=1, size=8, seed=99)
    state = load_file(folder / "model.safetensors")
    assert set(state) == set(model.state_dict())
    model.load_state_dict(state, strict=True)
    batches = Batches(split.train, 6, 1, recipe.data, torch.device("cpu"))
    scores = evaluate_model(model, batches.plain(split.test)).compute()
    assert scores == pytest.approx(json.loads((folder / "result.json").read_text())["test"], rel=1e-6)


def test_wall_time_is_split_into_what_is_shared_and_what_is_not(finished: Path) -> None:
    runs = {
        path.parent.name: json.loads(path.read_text())["seconds"] for path in finished.rglob("seed-0/*/result.json")
    }
    assert all(run["shared"] == runs["base"]["shared"] > 0 for run in runs.values())
    assert runs["base"]["own"] == runs["swa"]["own"] > 0
    assert runs["late-phase"]["own"] != runs["base"]["own"]
    results = json.loads((finished / "results.json").read_text())
    minibatches = results["settings"][0]["minibatches"]
    assert minibatches == {"each_run": 48, "trained": 2 * (24 + 4 * 24), "without_sharing": 6 * 2 * 48}


def test_curves_join_the_shared_training_to_the_own(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    curves = {name: m["curve"] for name, m in results["settings"][0]["methods"].items()}
    for curve in curves.values():
        assert curve["epoch"] == [1, 2, 3, 4, 5, 6]
        assert curve["accuracy"][:3] == curves["base"]["accuracy"][:3]
    assert curves["late-phase"]["nll"][3:] != curves["base"]["nll"][3:]


def test_processes_change_nothing(finished: Path, tmp_path: Path) -> None:
    spread = study(tmp_path / "run", workers=2)
    alone = json.loads((finished / "results.json").read_text())
    assert_same(without_times(spread), without_times(alone))
    assert spread["workers"] == 2


@pytest.mark.slow
def test_a_failing_process_ends_the_study_with_its_error(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"the loss of base, seed \d, became (nan|inf)"):
        study(tmp_path / "run", workers=2, training__lr=1e30, methods="[base]")


def test_a_study_grows_by_seeds_and_methods_without_training_again(tmp_path: Path) -> None:
    first = study(tmp_path / "run", seeds=1, methods="[base,late-phase]")
    # The twin, and an average of late-phase weights that nobody watched before.
    more = "[base,late-phase,late-phase+swa,twin]"
    grown = study(tmp_path / "run", seeds=2, methods=more)
    assert first["legs"] == {"trained_now": 3, "all": 3}
    # The second seed's four legs, and of the first seed the twin and late-phase.
    assert grown["legs"] == {"trained_now": 6, "all": 8}
    again = study(tmp_path / "run", seeds=2, methods=more)
    assert again["legs"] == {"trained_now": 0, "all": 8}
    assert without_times(again) == without_times(grown)
    together = study(tmp_path / "together", seeds=2, methods=more)
    assert_same(without_times(together), without_times(grown))


def test_a_run_folder_belongs_to_its_recipe(tmp_path: Path) -> None:
    study(tmp_path / "run", seeds=1, methods="[base]")
    before = (tmp_path / "run" / "tiny" / "recipe.yaml").read_text()
    with pytest.raises(ExperimentError, match=r"another recipe \(training\.lr is 0\.05 there, 0\.2 here\)"):
        study(tmp_path / "run", seeds=1, methods="[base]", training__lr=0.2)
    assert (tmp_path / "run" / "tiny" / "recipe.yaml").read_text() == before
    other = {"another": tiny_recipe(methods="[base]", seeds=1)}
    with pytest.raises(ExperimentError, match="run holds tiny; choose another --output"):
        compare(other, tmp_path / "run", command="", workers=1)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("years of work")
    with pytest.raises(ExperimentError, match="is not a run folder of latephase compare"):
        compare(other, tmp_path / "papers", command="", workers=1)


def test_a_recipe_that_was_damaged_is_not_taken_for_another(tmp_path: Path) -> None:
    study(tmp_path / "run", seeds=1, methods="[base]")
    (tmp_path / "run" / "tiny" / "recipe.yaml").write_text("title: [")
    with pytest.raises(ExperimentError, match=r"recipe\.yaml is not valid YAML"):
        study(tmp_path / "run", seeds=1, methods="[base]")


def test_a_single_training_writes_one_flat_folder(tmp_path: Path) -> None:
    recipe = tiny_recipe(method="late-phase+swa", seed=4)
    results = train("tiny", recipe, tmp_path / "run", command="latephase train tiny")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "recipe.yaml",
        "metrics.jsonl",
        "checkpoint.pt",
        "model.safetensors",
        "result.json",
        "results.json",
        "report.html",
        "tables.md",
        "csv",
        "SHA256SUMS",
    }
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert results["settings"][0]["seeds"] == [4]
    assert results["settings"][0]["methods"]["late-phase+swa"]["test"]["accuracy"]["se"] is None
    both = study(tmp_path / "study", seeds=1, seed=4, methods="[base,late-phase+swa]")
    one, two = (r["settings"][0]["methods"]["late-phase+swa"]["test"] for r in (results, both))
    assert one == two
    with pytest.raises(ExperimentError, match=r"\(method is late-phase\+swa there, base here\)"):
        train("tiny", tiny_recipe(method="base", seed=4), tmp_path / "run", command="")
    with pytest.raises(ExperimentError, match=r"\(seed is 4 there, 5 here\)"):
        train("tiny", tiny_recipe(method="late-phase+swa", seed=5), tmp_path / "run", command="")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "[bas]"}, "unknown method 'bas'; did you mean base"),
        ({"methods": "[]"}, "it takes at least one method"),
        ({"data__name": "digit"}, "unknown data set 'digit'; did you mean digits"),
        ({"model__name": "smallcnn"}, "unknown model 'smallcnn'; did you mean small-cnn"),
        ({"training__batch_size": 49}, "training.batch_size = 49 is more than the 48 images"),
        ({"compute__device": "tpu9"}, "compute.device = tpu9 is not to be had here"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError) as error:
        study(tmp_path / "run", **{"methods": "[base]"} | changes)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()
