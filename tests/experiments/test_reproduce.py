"""The paper's tables: what is published, what was run, and what is said where the two are not alike."""

import csv
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from latephase.cli import main
from latephase.experiments.config import Data
from latephase.experiments.errors import ExperimentError
from latephase.experiments.methods import method_names
from latephase.experiments.recipe import load_recipe, recipe_names
from latephase.experiments.reproduce import run
from latephase.experiments.reproduce.deviations import deviations
from latephase.experiments.reproduce.tables import paper_tables
from latephase.experiments.statistics import summarise


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("latephase.experiments.data._read", {})


def write_parquet(path: Path, n: int, kind: str = "JPEG") -> None:
    values = []
    for i in range(n):
        buffer = io.BytesIO()
        pixels = torch.randint(256, (32, 32, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(buffer, format=kind)
        values.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"img": values, "label": [i % 10 for i in range(n)]}), path)


def small(*more: str) -> list[str]:
    """A table of a second: a hundredth of the epochs, the smallest network and 40 images."""
    write_parquet(Path("train.parquet"), 60)
    write_parquet(Path("test.parquet"), 30)
    return [
        *("reproduce", "cifar10", "--rows", "base,late-phase,swa", "--model", "small-cnn", "--scale", "0.01"),
        *("--seeds", "2", "--data.train=train.parquet", "--data.test=test.parquet", "--data.subset=40"),
        *("--training.batch_size=8", "--compute.device=cpu", "--workers=1", "--late_phase.members=2", *more),
    ]


def table(folder: str = "runs/reproduce-cifar10-small-cnn-x0.01") -> dict[str, Any]:
    return json.loads(Path(folder, "table.json").read_text())


def test_the_tables_hold_the_published_numbers_and_name_recipes_and_methods() -> None:
    tables = paper_tables()
    assert set(tables) == {"cifar10", "cifar100", "wrn28-14", "pyramidnet", "imagenet", "enwik8"}
    published = {(t.name, row.name): row.value for t in tables.values() for row in t.rows}
    assert published["cifar10", "late-phase+swa"] == 96.81
    assert published["cifar100", "late-phase"] == 82.87
    assert published["wrn28-14", "cifar100"] == 85.00
    assert published["imagenet", "densenet161"] == 78.31
    assert published["enwik8", "late-phase"] == 1.633
    assert sum(value is not None for value in published.values()) == 28
    for row in (row for t in tables.values() for row in t.rows):
        assert row.recipe in recipe_names()
        assert row.method in method_names()
    assert tables["cifar10"].rows[0].se == pytest.approx(0.12 / math.sqrt(5))


def test_without_a_table_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    out = capsys.readouterr().out
    for name in paper_tables():
        assert f"{name} " in out


def test_a_table_sets_what_was_measured_beside_what_is_published(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    arguments = small()
    assert main(arguments) == 0
    out = capsys.readouterr().out
    found = table()
    rows = {row["row"]: row for row in found["rows"]}
    assert list(rows) == ["base", "late-phase", "swa"]
    for row in rows.values():
        ours = summarise(row["ours"]["by_seed"])
        assert row["ours"]["value"] == pytest.approx(ours["mean"])
        assert row["ours"]["se"] == pytest.approx(ours["se"])
        assert row["difference"]["mean"] == pytest.approx(ours["mean"] - row["published"]["value"])
        assert row["difference"]["se"] == pytest.approx(math.hypot(ours["se"], row["published"]["sd"] / math.sqrt(5)))
        assert row["cost"]["seconds"] > 0
        assert row["run"]["commit"] == found["commit"]
    for what in ("96.16 ± 0.12", "SGD, late-phase BatchNorm", "2 of 5", "This is not what was published"):
        assert what in out
        assert what in Path("runs/reproduce-cifar10-small-cnn-x0.01/table.md").read_text()
    said = " ".join(found["deviations"])
    for what in (
        "model.name is small-cnn instead of wrn-28-10",
        "training.epochs is 2 instead of 200",
        "data.subset is 40 instead of None",
        "2 of 5 seeds",
        "those of train.parquet, a lossy JPEG copy",
    ):
        assert what in said
    lines = list(csv.DictReader(Path("runs/reproduce-cifar10-small-cnn-x0.01/table.csv").read_text().splitlines()))
    assert [float(line["ours"]) for line in lines] == [row["ours"]["value"] for row in rows.values()]
    first = Path("runs/reproduce-cifar10-small-cnn-x0.01/cifar10-wrn28-10/results.json")
    assert json.loads(first.read_text())["legs"]["trained_now"] > 0
    # A second time nothing is trained, and the numbers are the same.
    assert main(arguments) == 0
    assert json.loads(first.read_text())["legs"]["trained_now"] == 0
    assert [row["ours"] for row in table()["rows"]] == [row["ours"] for row in rows.values()]


def test_a_dry_run_says_what_it_would_cost_and_touches_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "imagenet", "--dry-run", "--rows", "resnet50-base,resnet50"]) == 0
    out = capsys.readouterr().out
    assert "not run" in out
    assert "623 PFLOP" in out
    assert "densenet" not in out.lower()
    assert not list(Path().iterdir())


def test_rows_without_data_are_said_and_all_of_them_are_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = small("--seeds=1")
    assert main([*arguments, "--data.train=none.parquet"]) == 2
    assert "no row of cifar10 can be run: there is no data file none.parquet" in capsys.readouterr().err
    read = run.load_images

    def without_the_swa_row(data: Data) -> object:
        if next(asked) == 1:
            raise ExperimentError("the images are not here")
        return read(data)

    asked = itertools.count()
    monkeypatch.setattr(run, "load_images", without_the_swa_row)
    assert main(arguments) == 0
    assert "Not run: SWA, base: the images are not here." in " ".join(capsys.readouterr().out.split())
    assert [row["ours"] is None for row in table()["rows"]] == [False, False, True]


def test_a_published_recipe_deviates_from_itself_in_nothing() -> None:
    recipe = load_recipe("cifar100-wrn28-10")
    assert deviations(recipe, recipe, read=False) == []
    moved = load_recipe("cifar100-wrn28-10", ["--data.train=elsewhere", "--compute.device=cpu"])
    assert deviations(moved, recipe, read=False) == []
    faster = load_recipe("cifar100-wrn28-10", ["--compute.precision=bfloat16"])
    assert deviations(faster, recipe, read=False) == ["compute.precision is bfloat16 instead of float32"]


def test_a_lossless_copy_is_not_called_lossy() -> None:
    write_parquet(Path("train.parquet"), 12, "PNG")
    recipe = load_recipe("cifar10-wrn28-10", ["--data.train=train.parquet"])
    assert deviations(recipe, load_recipe("cifar10-wrn28-10")) == ["the images are those of train.parquet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifra10"], "unknown table 'cifra10'; did you mean cifar10"),
        (["cifar10", "--rows", "bas"], "unknown row of cifar10 'bas'; did you mean base"),
        (["cifar10", "--seeds", "0"], "--seeds 0 is not valid"),
        (["cifar10", "--scale", "0", "--dry-run"], "--scale 0.0 is not valid"),
        (["cifar10", "--model", "wrn-11-2", "--dry-run"], "a wide ResNet has a depth of 10"),
        (["cifar10", "--dry-run", "--training.lrr=1"], "unknown option '--training.lrr'"),
        (["imagenet", "--model.pretrained=false"], "no row of imagenet can be run: there is no data folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["reproduce", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
