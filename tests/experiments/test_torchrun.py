"""`latephase train` and `compare` in two processes: what one process would have come to, and files written by one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import team_commands
import torch
import torch.multiprocessing
from experiment_helpers import assert_same
from filelock import FileLock

from latephase import cli
from latephase.experiments.checkpoints import load_checkpoint

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(280)]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """The folder of all runs, and what the commands of each process said; workers of one test run share them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "team"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            (folder / "text.txt").write_text("\n".join(topics[name] for name in sorted(topics))[:9000])
            names = team_commands.commands(folder)
            ports = dict(zip(names, free_ports(len(names)), strict=True))
            arguments = (str(folder), ports)
            torch.multiprocessing.start_processes(
                team_commands.work, arguments, nprocs=team_commands.WORLD, start_method="spawn"
            )
    said = [torch.load(folder / f"said-{rank}.pt", weights_only=True) for rank in range(team_commands.WORLD)]
    return folder, said


@pytest.fixture(scope="session")
def alone(launched, tmp_path_factory) -> Path:
    """The same commands in this process, where they can be compared."""
    folder = tmp_path_factory.mktemp("alone")
    for name, arguments in team_commands.commands(launched[0]).items():
        if name in ("text", "compare"):
            one = ["--workers", "1"] if name == "compare" else []
            assert cli.main([*arguments[:-1], str(folder / name), *one]) == 0
    return folder


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", ["text", "whole", "resumed", "compare"])
def test_the_first_process_speaks_for_all(launched, name: str) -> None:
    _, said = launched
    assert [one[name]["code"] for one in said] == [0, 0], said
    assert "report" in said[0][name]["out"]
    assert said[1][name]["out"] == ""


def test_a_training_on_two_equals_one(launched, alone) -> None:
    """Losses of every epoch, members and weights, to the rounding of float32: a sum in two parts is another sum."""
    folder, _ = launched
    runs = folder / "team-text", alone / "text"
    ours, theirs = (load_checkpoint(run / "checkpoint.pt") for run in runs)
    assert ours["step"] == theirs["step"] > 30
    torch.testing.assert_close(ours["loss"], theirs["loss"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours["model"], theirs["model"], rtol=2e-3, atol=2e-4)
    values = ours["method"]["late"]["values"], theirs["method"]["late"]["values"]
    torch.testing.assert_close(*values, rtol=2e-3, atol=2e-4)
    assert ours["method"]["late"]["turn"] == theirs["method"]["late"]["turn"]
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in runs]
    for one, other in zip(*(map(json.loads, part) for part in lines), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["bpc"] == pytest.approx(other["bpc"], rel=1e-3)


def test_interrupted_and_resumed_equals_uninterrupted(launched) -> None:
    """In the middle of a round, bit for bit."""
    folder, said = launched
    assert [one["cut"]["code"] for one in said] == [130, 130]
    ours, theirs = (load_checkpoint(folder / name / "checkpoint.pt") for name in ("team-cut", "team-whole"))
    for state in (ours, theirs):
        del state["seconds"]
    assert_same(ours, theirs)
    curves = [(folder / name / "metrics.jsonl").read_text() for name in ("team-cut", "team-whole")]
    assert curves[0] == curves[1]


def test_a_comparison_on_two_is_that_of_one(launched, alone) -> None:
    """Each training is one process's own, so that every number is the same."""
    folder, _ = launched
    ours, theirs = results(folder / "team-compare"), results(alone / "compare")
    assert ours["workers"] == 2
    assert ours["legs"] == theirs["legs"] == {"trained_now": 6, "all": 6}
    paths = sorted(path.relative_to(folder / "team-compare") for path in (folder / "team-compare").rglob("result.json"))
    assert paths == sorted(path.relative_to(alone / "compare") for path in (alone / "compare").rglob("result.json"))
    assert len(paths) == 4
    for path in paths:
        one, other = (json.loads((where / path).read_text()) for where in (folder / "team-compare", alone / "compare"))
        for key in other:
            if "seconds" not in key:
                assert one[key] == other[key], (path, key)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("uneven", "training.batch_size = 7"),
        ("signal", "give a fraction"),
        ("streams", "text.order = windows"),
        ("workers", "leave it out"),
        ("elsewhere", "choose another --output"),
        ("tune", "tune is for one process"),
    ],
)
def test_what_cannot_work_is_refused_by_every_process(launched, name: str, words: str) -> None:
    for one in launched[1]:
        assert one[name]["code"] == 2
        assert words in one[name]["err"]


@pytest.mark.slow
def test_torchrun_itself(tmp_path) -> None:
    arguments = ["train", *team_commands.DIGITS, "--output", str(tmp_path / "run")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, "-m", "latephase", *arguments], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "run")["workers"] == 2
