"""`latephase sweep`: the jobs of a comparison."""

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
from experiment_helpers import options

from latephase import cli
from latephase.experiments import sweep

STUDY = ["digits-noisy", *options(methods="[base,swa,late-phase]", seeds=2, training__epochs=2)]


class Here:
    """A launcher that runs a job as soon as it is handed over, in this process."""

    def __init__(self, folder, cluster: str) -> None:
        assert cluster == "local"

    def update_parameters(self, **_) -> None: ...

    def submit(self, job: sweep.Job):
        trained = job()
        return SimpleNamespace(result=lambda: trained)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    asked = ["--partition", "gpu", "--hours", "2", "--gpus", "1", "--slurm", "account=vision", "--parallel", "4"]
    assert cli.main(["sweep", *STUDY, "--output", str(folder), "--dry-run", *asked]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 jobs" in said
    # Shared until T0, then late-phase and base, which swa is read off.
    assert re.findall(r"digits-noisy │? ?(\d) │? ?(\d)", said) == [("0", "3"), ("1", "3")]
    for words in ("slurm_partition=gpu", "timeout_min=120", "gpus_per_node=1", "account", "slurm_array_parallelism=4"):
        assert words in said
    assert "nothing was submitted" in said
    assert not folder.exists()


def test_compare_gathers_what_the_jobs_have_trained(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(submitit, "AutoExecutor", Here)
    folder = tmp_path / "run"
    assert cli.main(["sweep", *STUDY, "--output", str(folder), "--launcher", "local"]) == 0
    said = capsys.readouterr().out
    assert said.count("3 trajectories trained") == 2
    assert not (folder / "results.json").exists()
    gather = shlex.split(next(line for line in said.splitlines() if line.strip().startswith("latephase compare")))
    assert cli.main(gather[1:]) == 0
    assert json.loads((folder / "results.json").read_text())["legs"] == {"trained_now": 0, "all": 6}
    assert len(list(folder.rglob("result.json"))) == 6
    assert cli.main(["sweep", *STUDY, "--output", str(folder), "--dry-run"]) == 0
    assert "0 jobs" in capsys.readouterr().out


def test_an_interrupted_job_asks_to_be_started_again() -> None:
    job = sweep.Job("digits-noisy", None, 0, Path("somewhere"), 1, 10)
    again = job.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function is job


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs a recipe first"),
        ([*STUDY, "--launcher", "kubernetes"], "slurm, local"),
        ([*STUDY, "--hours", "-1"], "--hours -1"),
        ([*STUDY, "--slurm", "account"], "KEY=VALUE"),
        ([*STUDY, "--training.lr=fast"], "training.lr"),
        ([*STUDY], "use --launcher local"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, monkeypatch, arguments: list[str], words: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no srun
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_local_processes(tmp_path, capsys) -> None:
    arguments = ["sweep", *STUDY, "--output", str(tmp_path / "run"), "--launcher", "local", "--parallel", "2"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.count("3 trajectories trained") == 2
