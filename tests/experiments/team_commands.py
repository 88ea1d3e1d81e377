"""What each of two processes that torchrun could have started runs; test_torchrun.py compares it with one process."""

import contextlib
import io
import os
from pathlib import Path

import torch
from experiment_helpers import options

from latephase import cli
from latephase.experiments.trajectory import Trajectory

WORLD = 2
TEXT = [
    *("text-small", "--text.order=windows", "--model.name=transformer-1-32", "--text.length=16"),
    *("--training.batch_size=8", "--training.epochs=1", "--training.lr=0.003", "--method=late-phase"),
    *("--late_phase.weights=[norm,head]", "--late_phase.members=3", "--text.window=64", "--text.context=16"),
]
DIGITS = ["digits-noisy", *options(method="late-phase+swa")]
STUDY = ["digits-noisy", *options(methods="[base,late-phase]", seeds=2, training__epochs=3)]
CUT = 29  # minibatches after which a training is interrupted: in the middle of a round


def commands(folder: Path) -> dict[str, list[str]]:
    """By name: a command line without `latephase`."""
    text = [*TEXT, f"--data.train={folder / 'text.txt'}"]
    return {
        "text": ["train", *text, "--output", str(folder / "team-text")],
        "whole": ["train", *DIGITS, "--output", str(folder / "team-whole")],
        "cut": ["train", *DIGITS, "--checkpoint_minutes=0", "--output", str(folder / "team-cut")],
        "resumed": ["train", *DIGITS, "--output", str(folder / "team-cut")],
        "compare": ["compare", *STUDY, "--output", str(folder / "team-compare")],
        "uneven": ["train", *DIGITS, "--training.batch_size=7", "--output", str(folder / "uneven")],
        "signal": ["train", *DIGITS, "--late_phase.start=auto", "--output", str(folder / "signal")],
        "streams": ["train", "text-small", "--output", str(folder / "streams")],
        "workers": ["compare", *STUDY, "--workers=3", "--output", str(folder / "workers")],
        "elsewhere": ["compare", *STUDY, "--output", str(folder / "team-whole")],
        "tune": ["tune", *DIGITS, "--grid", "training.lr=0.1,0.2"],
    }


def work(rank: int, folder: str, ports: dict[str, int]) -> None:
    """Runs every command, each as a launch of its own, and writes down what came of it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1"}
    said = {}
    one_step = Trajectory._one_step

    def until(trajectory: Trajectory) -> None:
        if trajectory.step == CUT:
            raise KeyboardInterrupt
        one_step(trajectory)

    for name, arguments in commands(Path(folder)).items():
        os.environ["MASTER_PORT"] = str(ports[name])
        Trajectory._one_step = until if name == "cut" else one_step
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(arguments)
        said[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
        torch.save(said, Path(folder) / f"said-{rank}.pt")
