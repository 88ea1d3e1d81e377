"""The commands: what they print, and that mistakes end in one line and exit code 2."""

import json
import sys
from pathlib import Path

import pytest
from experiment_helpers import options

import latephase
from latephase import cli
from latephase.cli import main


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("latephase: error: ")
    assert err.count("\n") == 1
    return err


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"latephase {latephase.__version__}\n"
    assert main([]) == 0
    usage = capsys.readouterr().out
    for command in ("demo", "compare", "train", "recipes"):
        assert f"\n  {command} " in usage


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert "digits-noisy" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["compare", "train", "demo"])
def test_help_lists_the_fields_of_a_recipe(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: latephase {command}" in text
    assert "--late_phase.members" in text
    assert "--output" in text


def test_train_and_compare_end_with_the_table_and_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits-noisy", *options(training__epochs=2), "--output", "one"]) == 0
    assert "report: one/report.html" in capsys.readouterr().out
    arguments = ["compare", "digits-noisy", *options(training__epochs=2, seeds=2, methods="[base,late-phase]")]
    assert main([*arguments, "--workers", "1"]) == 0
    out, err = capsys.readouterr()
    assert "late-phase" in out
    assert "report: runs/digits-noisy/report.html" in out
    assert "\x1b" not in out + err
    assert "minibatches" not in err
    results = json.loads(Path("runs/digits-noisy/results.json").read_text())
    assert results["command"].startswith("latephase compare digits-noisy --data.subset=48")
    assert main([*arguments, "--workers", "1"]) == 0
    assert "Everything was trained before" in capsys.readouterr().out


def test_several_recipes_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    extra = options(training__epochs=1, seeds=1, methods="[base]")
    assert main(["compare", "digits-noisy", "digits-clean", *extra, "--workers=1"]) == 0
    capsys.readouterr()
    settings = json.loads(Path("runs/digits-noisy-and-digits-clean/results.json").read_text())["settings"]
    assert [setting["name"] for setting in settings] == ["digits-noisy", "digits-clean"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["comprae"], "unknown command 'comprae'; did you mean compare?"),
        (["compare"], "latephase compare needs a recipe first; there are"),
        (["compare", "digits-nosy"], "unknown recipe 'digits-nosy'; did you mean digits-noisy"),
        (["compare", "digits-noisy", "--late_phase.membrs", "5"], "did you mean --late_phase.members"),
        (["compare", "digits-noisy", "--methods=[base,swaa]"], "unknown method 'swaa'; did you mean swa"),
        (["train", "digits-noisy", "--method=late"], "unknown method 'late'"),
        (["train", "digits-noisy", "--model.name=torchvision:resnet10"], "unknown model"),
        (["train", "digits-noisy", "--data.name=dgits"], "unknown data set 'dgits'; did you mean digits"),
        (["train", "digits-noisy", "digits-clean"], "takes one recipe, not 2"),
        (["train", "digits-noisy", "--data.name=parquet", "--data.train=none.parquet"], "no data file none.parquet"),
        (["train", "digits-noisy", "--data.name=folder", "--data.train=none"], "there is no data folder none"),
        (["compare", "digits-noisy", "--workers", "0"], "--workers 0 is not valid"),
        (["compare", "digits-noisy", "--workers", "two"], "invalid int value: 'two'"),
        (["train", "missing.yaml"], "cannot read recipe missing.yaml: No such file"),
        (["train", "digits-noisy", "--scale", "0"], "--scale 0.0 is not valid; it takes a positive number"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in fails(capsys, *arguments)
    assert not Path("runs").exists()


def test_a_truncated_data_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("train.parquet").write_bytes(b"PAR1 and then nothing")
    arguments = ["train", "digits-noisy", "--data.name=parquet", "--data.train=train.parquet"]
    assert "cannot read train.parquet as parquet; it may be truncated" in fails(capsys, *arguments)


def test_the_run_folder_of_another_recipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["train", "digits-noisy", *options(training__epochs=1), "--output=one"]
    assert main(run) == 0
    capsys.readouterr()
    line = fails(capsys, *run, "--training.lr=0.3")
    assert "one is the run folder of another recipe (training.lr is 0.05 there, 0.3 here)" in line


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run = ["train", "digits-noisy", *options(training__epochs=1), "--output=one"]
    monkeypatch.setattr("os.fsync", full)
    assert "no space left on the disk for one/recipe.yaml" in fails(capsys, *run)


def test_an_interruption_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("latephase.experiments.study.run_legs", stop)
    assert main(["train", "digits-noisy", *options()]) == 130
    assert "the same command goes on from the last checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["rich", "jsonargparse", "sklearn"])
def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    # The import below leaves another package behind as an attribute; this puts the one of all other tests back.
    monkeypatch.setattr(latephase, "experiments", sys.modules["latephase.experiments"])
    for name in [name for name in sys.modules if name.split(".")[0] == missing or "latephase.experiments" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    line = fails(capsys, "train", "digits-noisy")
    assert "train needs" in line
    assert "pip install 'latephase[experiments]'" in line


def test_importing_the_commands_is_left_to_the_command_that_needs_them() -> None:
    source = Path(cli.__file__).read_text()
    top = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert top - sys.stdlib_module_names - {"__future__"} == {"latephase"}
