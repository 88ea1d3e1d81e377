"""What a command does with a run folder in which something was damaged, is another run's, or was killed at birth."""

import json
import os
import shutil
from pathlib import Path

import pytest
from experiment_helpers import assert_same, options, run_seed, tiny_recipe

from latephase import cli
from latephase.experiments.checkpoints import load_checkpoint, save_checkpoint, write_text
from latephase.experiments.checksums import damaged, write_sums
from latephase.experiments.errors import ExperimentError
from latephase.experiments.legs import is_done, run_leg
from latephase.experiments.metrics_file import read_records
from latephase.experiments.plan import Leg, plan_seed
from latephase.experiments.study import unfinished

METHODS = ["base", "late-phase"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run_seed(tiny_recipe(training__epochs=2), METHODS, folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run that may be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def legs(folder: Path, seed: int = 0, **changes: object) -> list[Leg]:
    recipe = tiny_recipe(**({"training__epochs": 2} | changes))
    return plan_seed(recipe, METHODS, seed, 16, folder)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 4
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("name", ["model.safetensors", "result.json", "SHA256SUMS"])
def test_a_damaged_result_is_said_and_made_again(run: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    _, _, late = legs(run)
    files = [run / "late-phase" / file for file in ("model.safetensors", "result.json")]
    weights, result = files[0].read_bytes(), json.loads(files[1].read_text())
    assert is_done(late)
    flip(run / "late-phase" / name)
    assert not is_done(late)
    run_leg(late)
    assert is_done(late)
    # A wrong sum says that the file is.
    which = "model.safetensors" if name == "SHA256SUMS" else name
    assert f"{which} is not what was written; it is made again from the last checkpoint" in caplog.text
    assert files[0].read_bytes() == weights
    assert {**json.loads(files[1].read_text()), "seconds": 0} == {**result, "seconds": 0}


def test_a_damaged_fork_is_trained_again_where_something_needs_it(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    shared, _, late = all_legs = legs(run)
    fork = run / "shared" / "fork-8.pt"
    whole = load_checkpoint(fork)
    flip(fork)
    assert unfinished(all_legs) == []
    (run / "late-phase" / "result.json").unlink()
    assert unfinished(all_legs) == [0, 2]
    run_leg(shared)
    assert "fork-8.pt is damaged or was not written to its end; what leads to it is trained again" in caplog.text
    ours = load_checkpoint(fork)
    assert_same({**ours, "seconds": 0}, {**whole, "seconds": 0})
    run_leg(late)
    assert unfinished(all_legs) == []


@pytest.mark.parametrize(
    ("of", "words"),
    [
        ({"late_phase__noise": 0.1}, r"late_phase.noise is 0.0 there, 0.1 here"),
        ({"seed": 1}, r"seed is 0 there, 1 here"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_by_name(run: Path, of: dict, words: str) -> None:
    _, _, late = legs(run, **of)
    (run / "late-phase" / "result.json").unlink()
    with pytest.raises(ExperimentError, match=rf"checkpoint\.pt is of another run \({words}\); remove .*late-phase"):
        run_leg(late)


def test_the_checkpoint_of_another_method_is_refused_by_name(run: Path) -> None:
    _, _, late = legs(run)
    (run / "late-phase" / "result.json").unlink()
    shutil.copy(run / "base" / "checkpoint.pt", run / "late-phase" / "checkpoint.pt")
    with pytest.raises(ExperimentError, match="method is base there, late-phase here"):
        run_leg(late)


def test_a_checkpoint_of_another_version_is_said(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, _, late = legs(run)
    (run / "late-phase" / "result.json").unlink()
    path = run / "late-phase" / "checkpoint.pt"
    state = load_checkpoint(path)
    assert set(state["run"]) == {"recipe", "method", "seed", "version"}
    save_checkpoint(path, state | {"run": state["run"] | {"version": "0.0.1"}})
    run_leg(late)
    assert "checkpoint.pt is of latephase 0.0.1; going on with" in caplog.text
    save_checkpoint(path, state | {"run": state["run"] | {"recipe": "unknown: 3"}})
    (run / "late-phase" / "result.json").unlink()
    with pytest.raises(ExperimentError, match=r"checkpoint\.pt names no recipe of this version"):
        run_leg(late)


def test_the_command_line_says_what_it_goes_on_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "digits-noisy", "--method=base", *options(training__epochs=2, checkpoint_minutes=0)]
    command += ["--output", str(tmp_path / "run")]
    assert cli.main(command) == 0
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "result.json").unlink()
    os.truncate(tmp_path / "run" / "checkpoint.pt", 5000)
    capsys.readouterr()
    assert cli.main(command) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("latephase: warning: ")
    assert "checkpoint.pt is damaged or was not written to its end; going on from previous-checkpoint.pt" in line
    assert line.endswith("of minibatch 16")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    for name in ("checkpoint.pt", "previous-checkpoint.pt"):
        os.truncate(tmp_path / "run" / name, 5000)
    (tmp_path / "run" / "result.json").unlink()
    assert cli.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no whole checkpoint at" in line
    assert "to start this run again" in line


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_start_that_was_killed_does_not_block_the_next(tmp_path: Path, command: str) -> None:
    from latephase.experiments.run_folder import claim
    from latephase.experiments.study import claim_all

    setting = tmp_path / "run" if command == "train" else tmp_path / "run" / "tiny"
    setting.mkdir(parents=True)
    (setting / ".recipe.yaml.0123456789ab.part").write_text("half of a rec")
    recipe = tiny_recipe()
    if command == "train":
        assert claim(setting, recipe) is False
    else:
        claim_all({"tiny": recipe}, tmp_path / "run")
    assert [path.name for path in setting.iterdir()] == ["recipe.yaml"]


def test_a_damaged_line_of_metrics_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    write_text(path, '{"step": 1}\n{"step\n[]\n{"step": 4}\n{"st')
    assert [record["step"] for record in read_records(path)] == [1, 4]
    assert caplog.text.count("is damaged; the learning curves go without it") == 2


def test_sums_that_are_no_sums_are_damage(tmp_path: Path) -> None:
    assert damaged(tmp_path) == []
    write_sums(tmp_path, {"a": b"1", "b": b"2"})
    (tmp_path / "a").write_bytes(b"1")
    assert [path.name for path in damaged(tmp_path)] == ["b"]
    for text in ("", "x\n", "é\n"):
        (tmp_path / "SHA256SUMS").write_text(text)
        assert [path.name for path in damaged(tmp_path)] == ["SHA256SUMS"]
