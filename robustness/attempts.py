"""Processes that are started to be killed: forked ones, and those of torchrun."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from marks import FOLDER, Marks


class Forked:
    """A process that does something, forked from this one: what this one has imported it need not import.

    Args:
        do: What it does; returns its exit code.
        folder: Where its marks and what it prints go.
        rank: Its number among several.
        variables: Environment variables of its own.
    """

    def __init__(
        self, do: Callable[[Marks], int], folder: Path, rank: int = 0, variables: Mapping[str, str] | None = None
    ) -> None:
        self.marks = [Marks(folder / f"marks-{rank}")]
        self.marks[0].say("starting", "")
        self._code: int | None = None
        self._pid = os.fork()
        if not self._pid:
            os.environ.update(variables or {})
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

    def end(self) -> None:
        """Ask it to end, and kill it if it does not."""
        os.kill(self._pid, signal.SIGTERM)
        patience = time.monotonic() + 2
        while self.code() is None and time.monotonic() < patience:
            time.sleep(0.005)
        if self.code() is None:
            self.kill(Random())

    def kill(self, _: Random) -> tuple[str, Marks]:
        """Kill it; what was killed, and its marks."""
        os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        self._code = os.waitstatus_to_exitcode(status)
        return "process", self.marks[0]


class Ranks:
    """Forked processes that train together: they find the variables that torchrun sets.

    Args:
        do: What each does; returns its exit code.
        folder: Where marks and what they print go.
        processes: How many.
    """

    def __init__(self, do: Callable[[Marks], int], folder: Path, processes: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        self._ranks = [
            Forked(do, folder, rank, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(processes)
        ]
        self.marks = [rank.marks[0] for rank in self._ranks]

    def code(self) -> int | None:
        """The exit code, of the first that failed; None while all is well and one runs."""
        codes = [rank.code() for rank in self._ranks]
        failed = [code for code in codes if code]
        if failed:
            self._end()
        return failed[0] if failed else None if None in codes else 0

    def kill(self, draw: Random) -> tuple[str, Marks]:
        """Kill all processes or, as often, one, after which the others are ended; what was killed, its marks."""
        whole, struck = draw.random() < 0.5, draw.choice(self._ranks)
        for rank in [struck, *self._ranks] if whole else [struck]:
            if rank.code() is None:
                rank.kill(draw)
        self._end()
        return "all processes" if whole else "one rank", struck.marks[0]

    def _end(self) -> None:
        # torchrun too ends the others, with SIGTERM; they may meanwhile have found out and be writing.
        for rank in self._ranks:
            if rank.code() is None:
                rank.end()


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
