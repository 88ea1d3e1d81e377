"""`latephase evaluate`: what it measures is what the library gives for the model that was trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluated import EVERYTHING, evaluated, images, trained
from experiment_helpers import TINY, options
from safetensors.torch import load_file

from latephase.cli import main
from latephase.evaluation import detect, evaluate_model
from latephase.experiments.evaluate.ood_sets import open_set
from latephase.experiments.evaluate.subject import load_subject, spread
from latephase.experiments.evaluate.target import find_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("command"))


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, Any]:
    return evaluated(run, *EVERYTHING)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of an evaluation that ends with exit code 2."""
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("latephase: error: ")
    assert err.count("\n") == 1
    return err


def test_scores_are_those_that_training_wrote(run: Path, results: dict[str, Any]) -> None:
    (setting,) = results["settings"]
    assert list(setting["methods"]) == ["base", "swa", "late-phase"]
    assert setting["seeds"] == [0, 1]
    for name, method in setting["methods"].items():
        for found in method["runs"]:
            trained = json.loads((run / f"digits-noisy/seed-{found['seed']}" / name / "result.json").read_text())
            parts = found["predictions"]
            assert parts["model"]["scores"] == pytest.approx(trained["test"], rel=1e-5)
            if name == "late-phase":
                assert parts["ensemble"]["scores"] == pytest.approx(trained["ensemble"], rel=1e-5)
                assert parts["comparison"]["disagreement"] == [pytest.approx(row) for row in trained["disagreement"]]
                assert len(parts["members"]) == 3
            else:
                assert parts["ensemble"] is parts["members"] is parts["comparison"] is None


def test_a_run_is_the_model_in_its_safetensors_file(run: Path) -> None:
    for found in find_runs(run, ())[0].runs:
        folder = run / "digits-noisy" / f"seed-{found.seed}" / found.method
        subject = load_subject(found)
        model = subject.plain_model()
        assert model is not None
        stored = load_file(folder / "model.safetensors")
        for name, tensor in model.state_dict().items():
            assert torch.allclose(tensor, stored[name], atol=1e-7), (found.method, name)


def test_temperature_is_fitted_on_the_validation_images_alone(run: Path, results: dict[str, Any]) -> None:
    found = results["settings"][0]["methods"]["base"]["runs"][0]["predictions"]["model"]
    assert found["temperature"]["samples"] == TINY["data.validation"]
    subject = load_subject(find_runs(run, ())[0].runs[0])
    trajectory = subject.trajectory
    validation = evaluate_model(trajectory.model, trajectory.task.validation()).compute()
    assert found["temperature"]["nll_before"] == pytest.approx(validation["nll"], rel=1e-5)
    assert found["temperature"]["nll_after"] <= found["temperature"]["nll_before"]
    test = evaluate_model(
        torch.nn.Sequential(trajectory.model, Divide(found["temperature"]["temperature"])),
        trajectory.task.test(),
    ).compute()
    assert found["scaled"] == pytest.approx(test, rel=1e-4)
    assert found["risk_coverage"]["error"] == pytest.approx(1 - found["scores"]["accuracy"])


class Divide(torch.nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.by


def test_detections_are_the_librarys(run: Path, results: dict[str, Any]) -> None:
    found = results["settings"][0]["methods"]["late-phase"]["runs"][1]["ood"]
    assert list(found) == ["gaussian noise", "uniform noise"]
    assert set(found["gaussian noise"]["ensemble"]["scores"]) == {
        "entropy", "max_probability", "energy", "mutual_information",
    }  # fmt: skip
    chosen = next(r for r in find_runs(run, ())[0].runs if (r.method, r.seed) == ("late-phase", 1))
    subject = load_subject(chosen)
    split, batches = subject.images.split, subject.images.batches

    def entropies(pictures: Any) -> torch.Tensor:
        p = torch.cat([subject.predictor.logits(x).double().softmax(1) for x, _ in batches.plain(pictures)])
        return -(p * p.log()).sum(1)

    outside = open_set("uniform", split.train.shape, len(split.test), 12)
    expected = detect(entropies(split.test), entropies(outside)).to_dict()
    assert found["uniform noise"]["model"]["scores"]["entropy"] == pytest.approx(expected, rel=1e-6)
    assert sum(found["uniform noise"]["model"]["entropy"]["outside"]) == pytest.approx(1)


def test_corruptions_are_relative_to_base_of_the_same_seed(results: dict[str, Any]) -> None:
    methods = results["settings"][0]["methods"]
    for i in (0, 1):
        base = methods["base"]["runs"][i]["corruptions"]["model"]
        assert base["relative"]["mce"] == 1.0
        late = methods["late-phase"]["runs"][i]["corruptions"]["model"]
        assert list(late["errors"]) == ["fog", "gaussian_noise"]
        assert late["samples"] == 20
        expected = np.mean([sum(late["errors"][k]) / sum(base["errors"][k]) for k in base["errors"]])
        assert late["relative"]["mce"] == pytest.approx(expected)


def test_geometry_is_of_the_model_and_its_members(results: dict[str, Any]) -> None:
    methods = results["settings"][0]["methods"]
    late = methods["late-phase"]["runs"][0]
    assert late["flatness"]["samples"] == 20
    assert len(late["flatness"]["eigenvalues"]) == 1
    assert late["landscape"]["lines"]["train"]["stations"] == ["member 1", "average", "member 2"]
    assert late["landscape"]["lines"]["train"]["statistics"] == "recomputed"
    assert len(late["landscape"]["plane"]["loss"]) == 3
    whole = late["landscape"]["layers"]["disagreement"][0]
    assert whole["whole"]
    assert len(whole["disagreement"]) == 3
    base = methods["base"]["runs"][0]["landscape"]
    assert base["lines"] is base["plane"] is base["layers"] is None
    assert base["perturbation"]["draws"] == 2


def test_only_some_seeds_need_have_their_geometry_looked_at(run: Path) -> None:
    found = evaluated(run, "--methods=base", "--flatness", "--flatness-images=9", "--probes=2", "--geometry-seeds=1")
    first, second = found["settings"][0]["methods"]["base"]["runs"]
    assert first["flatness"] is not None
    assert second["flatness"] is None


def test_a_methods_folder_a_setting_and_one_training_are_runs_too(run: Path, tmp_path: Path) -> None:
    one = evaluated(run / "digits-noisy/seed-1/late-phase")
    (method,) = one["settings"][0]["methods"].values()
    assert [found["seed"] for found in method["runs"]] == [1]
    setting = evaluated(run / "digits-noisy", "--seeds=0", "--methods=base,swa")
    assert list(setting["settings"][0]["methods"]) == ["base", "swa"]
    train = ["train", "digits-noisy", *options(training__epochs=2), f"--output={tmp_path / 'one'}"]
    assert main(train) == 0
    alone = evaluated(tmp_path / "one")
    trained = json.loads((tmp_path / "one/result.json").read_text())
    scores = alone["settings"][0]["methods"]["late-phase"]["runs"][0]["predictions"]
    assert scores["model"]["scores"] == pytest.approx(trained["test"], rel=1e-5)
    assert scores["ensemble"] is not None


def test_weights_of_a_file_are_evaluated_with_their_model_and_data(
    run: Path, results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.safetensors"
    shutil.copy(run / "digits-noisy/seed-0/base/model.safetensors", file)
    recipe = run / "digits-noisy/recipe.yaml"
    assert main(["evaluate", str(file), f"--recipe={recipe}", "--ood", "uniform", "--ood-images=12"]) == 0
    assert "report: " in capsys.readouterr().out
    found = json.loads((tmp_path / "mine-evaluation/evaluation.json").read_text())
    (method,) = found["settings"][0]["methods"].values()
    expected = results["settings"][0]["methods"]["base"]["runs"][0]
    assert method["label"] == "mine"
    ours = method["runs"][0]["predictions"]["model"]["scores"]
    assert ours == pytest.approx(expected["predictions"]["model"]["scores"], rel=1e-5)
    names = ("data.subset", "data.validation", "data.test_images", "model.width")
    same = [f"--{name}={TINY[name]}" for name in names]
    noisy = ["--model.depth=2", "--data.label_noise=0.2"]
    assert main(["evaluate", str(file), "--model=small-cnn", "--data=digits", *same, *noisy]) == 0
    again = json.loads((tmp_path / "mine-evaluation/evaluation.json").read_text())
    (method,) = again["settings"][0]["methods"].values()
    assert method["runs"][0]["predictions"]["model"]["scores"] == pytest.approx(ours, rel=1e-5)


def test_it_ends_with_a_short_table_and_the_reports_path(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--seeds=0", "--output", str(run.parent / "short")]) == 0
    out, err = capsys.readouterr()
    assert "NLL scaled" in out
    assert out.rstrip().endswith("short/evaluation.html")
    assert "\x1b" not in out + err
    assert main(["evaluate", "--help"]) == 0
    assert "usage: latephase evaluate RUN_OR_SAFETENSORS" in capsys.readouterr().out


def test_results_say_where_they_come_from(results: dict[str, Any]) -> None:
    assert results["command"].startswith("latephase evaluate ")
    assert {"commit", "date", "device", "seconds", "versions", "options"} <= set(results)
    assert {"latephase", "torch", "numpy"} <= set(results["versions"])


def test_a_recipe_without_validation_images_has_no_temperature_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path, methods="[base]", seeds=1, data__validation=0)
    found = evaluated(run)["settings"][0]["methods"]["base"]["runs"][0]["predictions"]
    assert found["model"]["temperature"] is found["model"]["scaled"] is None
    assert "data.validation = 0" in found["no_temperature"]["all"]
    assert "no NLL after temperature scaling" in capsys.readouterr().out
    assert "data.validation = 0" in (run.parent / "evaluation/evaluation.html").read_text()


def test_evenly_spread_positions() -> None:
    assert spread(5, None).tolist() == spread(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert spread(1000, 4).tolist() == [0, 250, 500, 750]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs a run folder or a .safetensors file first"),
        (["none"], "there is no run none"),
        (["{run}", "--ood", "nowhere"], "--ood nowhere: no such file or folder, nor one of gaussian, uniform, svhn"),
        (["{run}", "--ood", "{empty}"], "empty holds no images"),
        (["{run}", "--ood", "{single}"], "single holds 1 images; a set needs two at least"),
        (["{run}", "--ood", "{broken}.parquet"], "broken.parquet as parquet; it may be truncated"),
        (["{run}", "--ood", "{broken}"], "cannot read the image"),
        (["{run}", "--corruptions", "nowhere"], "nowhere has no labels.npy"),
        (["{run}", "--corruptions", "builtin", "--kinds", "fogg"], "unknown corruption 'fogg'; did you mean fog?"),
        (["{run}", "--corruptions", "builtin", "--severities", "6"], "--severities 6 is not valid; there are 1 to 5"),
        (["{run}", "--corruptions", "builtin", "--corruption-images", "0"], "--corruption-images 0 is not valid"),
        (["{run}", "--corruptions", "builtin", "--relative-to", "none"], "there is no run none"),
        (["{run}", "--kinds", "fog"], "--kinds, --severities and --relative-to need --corruptions"),
        (["{run}", "--methods", "late-fase"], "did you mean late-phase?"),
        (
            ["{run}", "--methods", "base", "--landscape", "plane"],
            "--landscape plane needs members, which base has none",
        ),
        (["{run}", "--landscape", "plain"], "unknown view of the landscape 'plain'; did you mean plane or lines?"),
        (["{run}", "--seeds", "7"], "unknown seed"),
        (["{run}", "--seeds", "one"], "--seeds one is not valid; it takes whole numbers"),
        (["{run}", "--probes", "1"], "--probes 1 is not valid; it takes a whole number from 2"),
        (["{run}", "--flatness", "--eigenvalues", "100000"], "100000 eigenvalues"),
        (["{run}", "--data.validation", "10"], "--data.validation cannot be changed after the training"),
        (["{run}", "--recipe", "digits"], "--recipe is for a .safetensors file"),
        (["{run}", "--floatness"], "did you mean --flatness"),
        (["{file}"], "holds weights only: name their --model and --data, or a --recipe"),
        (
            ["{file}", "--recipe", "digits-noisy", "--model.width", "5"],
            "does not fit the model SmallCNN for 10 classes",
        ),
        (["{broken}.safetensors", "--recipe", "digits"], "as safetensors; it may be truncated"),
        (["missing.safetensors", "--recipe", "digits"], "there is no file missing.safetensors"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_exit_code_2(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    images(tmp_path / "single", 1)
    images(tmp_path / "broken", 3)
    (tmp_path / "broken/1.png").write_bytes(b"no image")
    for suffix in ("parquet", "safetensors"):
        (tmp_path / f"broken.{suffix}").write_bytes(b"PAR1 and then nothing")
    shutil.copy(run / "digits-noisy/seed-0/base/model.safetensors", tmp_path / "model.safetensors")
    places = {"run": run, "file": tmp_path / "model.safetensors"}
    places |= {name: tmp_path / name for name in ("empty", "single", "broken")}
    assert message in fails(capsys, *(text.format(**places) for text in arguments), f"--output={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_missing_something_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    seed = tmp_path / "run/digits-noisy/seed-1"
    (seed / "late-phase/checkpoint.pt").unlink()
    assert "late-phase/checkpoint.pt is missing" in fails(capsys, tmp_path / "run")
    (seed / "swa/result.json").unlink()
    assert "seed-1 has no result of swa" in fails(capsys, tmp_path / "run", "--methods=base,swa")
    content = (seed / "base/checkpoint.pt").read_bytes()
    (seed / "base/checkpoint.pt").write_bytes(content[: len(content) // 2])
    (seed / "base/previous-checkpoint.pt").unlink(missing_ok=True)
    assert "no whole checkpoint" in fails(capsys, tmp_path / "run", "--methods=base", "--seeds=1")


def test_published_corruptions_of_another_shape_are_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(10, dtype=np.int64))
    np.save(tmp_path / "fog.npy", np.zeros((10, 32, 32, 3), dtype=np.uint8))
    line = fails(capsys, run, "--corruptions", tmp_path, "--kinds", "fog")
    assert "holds images of shape (3, 32, 32), and the model takes (1, 8, 8)" in line
