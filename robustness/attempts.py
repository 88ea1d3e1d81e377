"""Processes that are started to be killed: forked ones, and those of torchrun."""

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

from marks import FOLDER, Marks


class Forked:
    """A process that does something, forked from this one: what this one has imported it need not import.

    Args:
        do: What it does; returns its exit code.
        folder: Where its marks and what it prints go.
    """

    def __init__(self, do: Callable[[Marks], int], folder: Path) -> None:
        self.marks = [Marks(folder / "marks-0")]
        self.marks[0].say("starting", "")
        self._code: int | None = None
        self._pid = os.fork()
        if not self._pid:
            self._carry_out(do, folder)

    def _carry_out(self, do: Callable[[Marks], int], folder: Path) -> None:
        code = 70
        try:
            said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(said, stream)
            sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
            code = do(self.marks[0])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def code(self) -> int | None:
        """The exit code; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def kill(self, _: Random) -> tuple[str, Marks]:
        """Kill it; what was killed, and its marks."""
        os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        self._code = os.waitstatus_to_exitcode(status)
        return "process", self.marks[0]


class Launched:
    """Processes of torchrun, each with marks.

    Args:
        arguments: What follows `latephase`.
        folder: Where marks and what they print go.
        processes: How many.
    """

    def __init__(self, arguments: list[str], folder: Path, processes: int) -> None:
        self.marks = [Marks(folder / f"marks-{rank}") for rank in range(processes)]
        for marks in self.marks:
            marks.say("starting", "")
        own = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        environment = {**os.environ, FOLDER: str(folder), "OMP_NUM_THREADS": "1"}
        with open(folder / "said.txt", "ab") as said:
            self._launcher = subprocess.Popen(
                [*own, str(Path(__file__).with_name("marks.py")), *arguments],
                stdout=said,
                stderr=said,
                env=environment,
            )

    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._launcher.poll()

    def kill(self, draw: Random) -> tuple[str, Marks]:
        """Kill all processes or, as often, one, of which torchrun then ends the others; what was killed, its marks."""
        whole, struck = draw.random() < 0.5, draw.choice(self.marks)
        if whole:
            _kill(self._launcher.pid)
        for marks in self.marks if whole else [struck]:
            # Until it has said something of its own the number is ours.
            if marks.read()[0] != os.getpid():
                _kill(marks.read()[0])
        self._launcher.wait(120)
        return "all processes" if whole else "one rank", struck


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may just have ended
        os.kill(pid, signal.SIGKILL)
