"""What a process is doing, in a file that outlives it: where a kill struck is read from there."""

import functools
import importlib
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "LATEPHASE_MARKS"
_SIZE = 256

# Function of the library, and what a process does in it.
WATCHED = {
    "latephase.experiments.legs:load_checkpoint": "reading a checkpoint",
    "latephase.experiments.legs:cut_records": "cutting metrics.jsonl",
    "latephase.experiments.legs:append_record": "writing metrics.jsonl",
    "latephase.experiments.legs:save_checkpoint": "writing a checkpoint",
    "latephase.experiments.legs:save_outcome": "writing the outcome",
    "latephase.experiments.outcome:predictor_of": "averaging the members",
    "latephase.experiments.outcome:evaluate_members": "evaluating",
    "latephase.experiments.study:claim": "writing the recipe",
    "latephase.experiments.study:claim_all": "writing the recipe",
    "latephase.experiments.study:gather": "writing the report",
    "latephase.experiments.study:write_results": "writing the report",
    "latephase.experiments.report.page:write_report": "writing the report",
    "latephase.experiments.trajectory:Trajectory.evaluate": "evaluating",
    "latephase.whole_files:put_in_place": "renaming",
    "latephase.phase:LatePhase.start": "starting the members",
    "latephase.phase:LatePhase.collapse": "collapsing",
}
_INSIDE = ("writing a checkpoint", "writing the outcome", "writing the recipe", "writing the report")


class Marks:
    """One process's line of what it does.

    Args:
        file: Where; made if it is not there.
    """

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(bytes(_SIZE))
        with open(file, "r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), _SIZE)
        self.phase, self.operation = "", "starting"

    def say(self, operation: str | None = None, phase: str | None = None) -> None:
        """Note what comes now."""
        self.operation = self.operation if operation is None else operation
        self.phase = self.phase if phase is None else phase
        self._map[:] = f"{os.getpid()}\n{self.phase}\n{self.operation}\n".encode().ljust(_SIZE, b"\0")

    def read(self) -> tuple[int, str, str]:
        """The process, the phase of its run and what it does."""
        pid, phase, operation, _ = [*bytes(self._map).decode().split("\n", 3), "", "", ""][:4]
        return (int(pid), phase, operation) if pid.strip("\0") else (0, "", "starting")

    def watch(self, place: str, operation: str, after: str | None = None) -> None:
        """Let a function note that it is being carried out, and that the run is in another phase afterwards."""
        module_name, path = place.split(":")
        owner: Any = importlib.import_module(module_name)
        *outer, name = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, name, self._noting(getattr(owner, name), operation, after))

    def follow(self) -> None:
        """Note the minibatches of the experiments' training loop, and everything in `WATCHED`."""
        for place, operation in WATCHED.items():
            self.watch(place, operation)
        from latephase.experiments import legs
        from latephase.experiments.trajectory import Trajectory

        step, outcome = Trajectory._one_step, legs.save_outcome

        def one_step(trajectory: Trajectory) -> None:
            done, recipe = trajectory.step / trajectory.total, trajectory.recipe
            t0, swa = float(recipe.late_phase.start), recipe.swa.start
            phase = "before T0" if done < t0 else "T0 to SWA" if done < swa else "SWA"
            self.say("training", phase)
            step(trajectory)

        def save_outcome(*arguments: Any, **named: Any) -> None:
            self.say(phase="end")
            outcome(*arguments, **named)

        Trajectory._one_step = one_step  # type: ignore[method-assign]
        legs.save_outcome = save_outcome

    def _noting(self, function: Callable[..., Any], operation: str, after: str | None) -> Callable[..., Any]:
        @functools.wraps(function)
        def noting(*arguments: Any, **named: Any) -> Any:
            before = self.operation
            # A rename is one of the file that is being written.
            inside = operation == "renaming" and before in _INSIDE
            self.say(f"{before}: renaming" if inside else operation)
            try:
                return function(*arguments, **named)
            finally:
                self.say(before, after)

        return noting


if __name__ == "__main__":
    # What torchrun starts: the command line, with marks.
    marks = Marks(Path(os.environ[FOLDER]) / f"marks-{os.environ['RANK']}")
    marks.say()
    marks.follow()
    from latephase.cli import main

    sys.exit(main())
