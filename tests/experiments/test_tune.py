"""Tuning sees validation images only, and every method the same grid."""

import json
from pathlib import Path

import pytest
from experiment_helpers import options

from latephase.experiments.errors import ExperimentError
from latephase.experiments.tune import choose, grid_recipes, main

TINY = ["digits-noisy", *options(), "--methods=[base,swa,late-phase]", "--seeds=2", "--workers=1"]


def test_every_method_is_judged_at_every_point_by_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tune"
    assert main([*TINY, "--grid", "training.lr=0.0001,0.05", "--output", str(folder)]) == 0
    tuned = json.loads((folder / "tune.json").read_text())
    results = json.loads((folder / "results.json").read_text())
    assert list(tuned["methods"]) == ["base", "swa", "late-phase"]
    for method, values in tuned["methods"].items():
        # A rate at which nothing is learnt in 48 steps is never the best one.
        assert values["best"] == "training.lr=0.05"
        for setting in results["settings"]:
            assert values["validation"][setting["name"]] == setting["methods"][method]["validation"]
    shown = capsys.readouterr().out
    validation = results["settings"][1]["methods"]["base"]["validation"]["accuracy"]["mean"]
    assert f"{100 * validation:.2f}" in shown
    assert "test" not in json.dumps(tuned["methods"])


def test_the_best_point_is_the_highest_accuracy_or_the_lowest_loss() -> None:
    def at(accuracy: float, nll: float) -> dict[str, object]:
        scores = {"accuracy": {"mean": accuracy, "se": None, "n": 1}, "nll": {"mean": nll, "se": None, "n": 1}}
        return {"base": {"label": "base", "validation": scores}}

    settings = [
        {"name": name, "methods": at(*scores), "seeds": [0]}
        for name, scores in {"a": (0.7, 0.5), "b": (0.8, 0.6), "c": (0.6, 0.4)}.items()
    ]
    provenance = dict.fromkeys(("command", "commit", "date", "device", "seconds", "versions"))
    results = {**provenance, "settings": settings}
    assert choose(results, "accuracy")["methods"]["base"]["best"] == "b"
    assert choose(results, "nll")["methods"]["base"]["best"] == "c"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "latephase tune needs a recipe first"),
        (["digits-noisy"], "needs at least one --grid"),
        (["digits-noisy", "--grid", "training.lr"], r"--grid training.lr is not valid; it takes KEY=VALUE"),
        (["digits-noisy", "--grid", "training.lr=0.1", "--metric", "acuracy"], "did you mean accuracy"),
        (["digits-noisy", "--grid", "training.lrs=0.1"], "unknown option '--training.lrs'; did you mean --training.lr"),
        (["digits-noisy", "--grid", "training.lr=0.1", "--data.validation", "0"], "no images to choose by"),
    ],
)
def test_bad_grids_are_refused_in_a_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        main(arguments)


def test_a_grid_is_the_product_of_its_axes() -> None:
    recipes = grid_recipes("digits-noisy", ["training.lr=0.1,0.2", "late_phase.members=3,5"], ["--seed=7"])
    assert [(r.training.lr, r.late_phase.members, r.seed) for r in recipes.values()] == [
        (0.1, 3, 7),
        (0.1, 5, 7),
        (0.2, 3, 7),
        (0.2, 5, 7),
    ]
