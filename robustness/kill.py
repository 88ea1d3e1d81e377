"""kill -9 at random moments, until a run is finished: do the final files equal those of a run that nobody killed?

    python robustness/kill.py --kills 60 --json results/robustness/kill.json

The campaigns: `latephase compare` in one process (compare), a plain loop with the core alone, examples/resume_loop.py
(loop), `latephase train` in two processes that train together, forked (ranks) and started by torchrun (torchrun, where
an attempt takes ten times as long). All ranks are killed, or one. Half of the kills come after a random time, half as
soon as the process does a thing drawn at random (and a few milliseconds later), so that short moments are struck too.
"""

import argparse
import collections
import contextlib
import functools
import importlib.util
import io
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "benchmarks")]

import torch  # noqa: E402

from attempts import Forked, Launched, Ranks  # noqa: E402
from environment import save  # noqa: E402
from marks import Marks  # noqa: E402
from same_files import differences  # noqa: E402

RECIPE = {
    "data.subset": 48,
    "data.validation": 40,
    "data.test_images": 60,
    "training.epochs": 9,
    "training.batch_size": 6,
    "model.width": 4,
    "late_phase.members": 3,
    "late_phase.start": 0.3,
    "swa.start": 0.6,
    "seeds": 1,
    # A few milliseconds: many kills then strike inside a write.
    "checkpoint_minutes": 0.0002,
}
OPTIONS = [f"--{key}={value}" for key, value in RECIPE.items()]
METHODS = "--methods=[base,swa,late-phase,late-phase+swa]"
# What gloo says if a process does not find another at the start, and how often that may happen in a campaign.
_UNCONNECTED, _PATIENCE = "connectFullMesh failed", 5
AIMS = {
    "compare": (
        "writing a checkpoint",
        "writing a checkpoint: renaming",
        "writing metrics.jsonl",
        "evaluating",
        "starting the members",
        "writing the outcome",
        "writing the outcome: renaming",
        "averaging the members",
        "reading a checkpoint",
        "writing the report",
        "writing the recipe",
    ),
    "loop": ("writing a checkpoint", "starting the members", "collapsing"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the campaigns; the exit code is 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=60, help="at least so many in each campaign")
    parser.add_argument("--campaigns", nargs="+", default=["compare", "loop", "ranks"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if set(options.campaigns) != {"torchrun"}:
        warm_up()
    rows = []
    for name in options.campaigns:
        rows.append(run_campaign(name, options.kills, options.seed))
        print_row(rows[-1])
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            save(options.json, options, rows, "campaigns")
    return 0 if all(row["equal"] for row in rows) else 1


def run_campaign(name: str, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill one kind of run until enough kills have struck and the run is finished.

    Args:
        name: `compare`, `loop`, `ranks` or `torchrun`.
        kills: At least so many.
        seed: Seed of the moments.

    Returns:
        What happened, as plain values.
    """
    draw = random.Random(f"{name} {seed}")
    begun = time.monotonic()
    struck: list[dict[str, str]] = []
    wrong: list[str] = []
    runs = starts = found = unconnected = 0
    with tempfile.TemporaryDirectory(prefix="kill-") as made:
        whole = Path(made) / "whole"
        whole.mkdir()
        _, seconds = _attempt(name, whole, draw, None, wrong)
        aims = AIMS["loop" if name == "loop" else "compare"]
        while len(struck) < kills and not wrong:
            folder = Path(made) / f"run-{runs}"
            folder.mkdir()
            runs, finished = runs + 1, False
            while not finished and not wrong:
                starts += 1
                # After a time, or at something it does; a run takes a dozen attempts or so.
                timed = draw.random() < 0.5
                when = draw.uniform(0, seconds / 4) if timed else draw.choice(aims)
                failed: list[str] = []
                strike, _ = _attempt(name, folder, draw, when, failed)
                if failed and unconnected < _PATIENCE and _UNCONNECTED in failed[0]:
                    # The processes did not find each other, as happens where more of them want a core than there are.
                    unconnected += 1
                    continue
                wrong += failed
                finished = strike is None
                struck += [strike] if strike else []
            wrong += [] if wrong else differences(folder / "run", whole / "run")
            said = (folder / "said.txt").read_text(errors="replace")
            found += said.count("is damaged")
            wrong += ["a checkpoint was found damaged"] if found else []
        return {
            "campaign": name,
            "processes": 2 if name in ("ranks", "torchrun") else 1,
            "kills": len(struck),
            "runs": runs,
            "starts": starts,
            "starts_without_connection": unconnected,
            "damaged": found,
            "equal": not wrong,
            "differences": wrong,
            **{key: dict(collections.Counter(one[key] for one in struck)) for key in ("operation", "phase", "target")},
            "seconds_uninterrupted": round(seconds, 2),
            "seconds": round(time.monotonic() - begun, 1),
        }


def _attempt(
    name: str, folder: Path, draw: random.Random, when: float | str | None, wrong: list[str]
) -> tuple[dict[str, str] | None, float]:
    """Start a run, or go on with it, and kill it; None if it ended before, and the seconds that it took."""
    attempt = _start(name, folder)
    extra = draw.uniform(0, 0.004)
    ready = due = None
    while attempt.code() is None:
        time.sleep(0.0002)
        said = [marks.read() for marks in attempt.marks]
        now = time.monotonic()
        if ready is None and all(operation != "starting" for _, _, operation in said):
            ready = now
        if isinstance(when, str) and due is None and any(operation == when for _, _, operation in said):
            due = now + extra
        elif isinstance(when, float) and due is None and ready is not None:
            due = now + when
        if due is not None and now >= due:
            target, marks = attempt.kill(draw)
            # What it was doing when it died.
            _, phase, operation = marks.read()
            return {"operation": operation, "phase": phase or "start-up", "target": target}, 0.0
    if attempt.code() != 0:
        said_last = (folder / "said.txt").read_text(errors="replace").splitlines()[-12:]
        wrong.append(f"exit code {attempt.code()} of a run that nobody killed: {' | '.join(said_last)[-2000:]}")
    return None, time.monotonic() - (ready or time.monotonic())


def _start(name: str, folder: Path) -> Forked | Ranks | Launched:
    output = ["--output", str(folder / "run")]
    if name == "loop":
        return Forked(_loop(folder / "run"), folder)
    if name == "compare":
        return Forked(_command(["compare", "digits-noisy", METHODS, *OPTIONS, "--workers=1", *output]), folder)
    arguments = ["train", "digits-noisy", "--method=late-phase+swa", *OPTIONS, *output]
    return Launched(arguments, folder, 2) if name == "torchrun" else Ranks(_command(arguments), folder, 2)


def _command(arguments: list[str]) -> Callable[[Marks], int]:
    def command(marks: Marks) -> int:
        marks.say()
        marks.follow()
        from latephase.cli import main as command_line

        return command_line(arguments)

    return command


def _loop(output: Path) -> Callable[[Marks], int]:
    example = _example()

    def loop(marks: Marks) -> int:
        marks.watch("latephase.phase:LatePhase.start", "starting the members", "after T0")
        marks.watch("latephase.phase:LatePhase.load_state_dict", "reading a checkpoint", "going on")
        marks.watch("latephase.phase:LatePhase.collapse", "collapsing", "end")
        marks.watch("resume_loop:save", "writing a checkpoint")
        marks.say("training", "begin")
        example.train(output)
        return 0

    return loop


def _example() -> Any:
    """The example's module, imported by its path once."""
    if "resume_loop" not in sys.modules:
        specification = importlib.util.spec_from_file_location("resume_loop", ROOT / "examples" / "resume_loop.py")
        assert specification is not None
        assert specification.loader is not None
        sys.modules["resume_loop"] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(sys.modules["resume_loop"])
    return sys.modules["resume_loop"]


@functools.cache
def warm_up() -> None:
    """Import and look up once what every forked process would: much of torch is imported by the first step."""
    from latephase.cli import main as command_line

    torch.set_num_threads(1)  # a process with one thread can be forked
    with tempfile.TemporaryDirectory() as made, contextlib.redirect_stdout(io.StringIO()):
        _example().train(Path(made) / "loop")
        command_line(["compare", "digits-noisy", METHODS, *OPTIONS, "--workers=1", "--output", f"{made}/run"])


def print_row(row: dict[str, Any]) -> None:
    """Print what a campaign came to."""
    lines = [
        f"{row['campaign']}, {row['processes']} process(es): {row['kills']} kills, {row['starts']} starts, "
        f"{row['runs']} finished run(s), {row['starts_without_connection']} start(s) without connection, in "
        f"{row['seconds']} s; {row['damaged']} damaged checkpoint(s) found; "
        f"final files {'equal bit for bit' if row['equal'] else 'DIFFER'}"
    ]
    for key in ("operation", "phase", "target"):
        lines += [f"  {key}: " + ", ".join(f"{name} {count}" for name, count in sorted(row[key].items()))]
    lines += [f"  {line}" for line in row["differences"]]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
