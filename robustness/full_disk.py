"""A disk that is full at every place of a run: one line, nothing older lost, and afterwards the same bits.

    python robustness/full_disk.py --json results/robustness/full-disk.json

The run folder lies in a small file system (a tmpfs, which takes root to mount) of a few KiB, then of a few more, and so
on until everything fits: each time another write finds no space. Then space is made, and the same command goes on. The
same with a limit on the size of a file (RLIMIT_FSIZE), which needs no root, and with a disk that is full in the middle
of a file of a name, since on a small disk it is nearly always the largest file, a checkpoint, that finds no space.
"""

import argparse
import contextlib
import errno
import functools
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "benchmarks")]

from attempts import Forked  # noqa: E402
from kill import METHODS, OPTIONS, save, warm_up  # noqa: E402
from latephase import whole_files  # noqa: E402
from latephase.checked_files import has_checksum  # noqa: E402
from latephase.experiments import metrics_file  # noqa: E402
from latephase.experiments.checksums import damaged  # noqa: E402
from marks import Marks  # noqa: E402
from same_files import differences  # noqa: E402

KIB = 1024
NAMES = ["recipe.yaml", "metrics.jsonl", "checkpoint.pt", "fork-", "model.safetensors", "SHA256SUMS", "result.json"]
NAMES += ["results.json", "report.html", ".csv", "tables.md"]


def main(arguments: list[str] | None = None) -> int:
    """Fill the disk at one size after another; the exit code is 1 if anything is lost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--step", type=int, default=16, help="KiB from one size of the disk to the next")
    parser.add_argument("--sizes", type=int, nargs="*", help="these instead, in KiB")
    parser.add_argument("--files", type=int, nargs="*", default=[0, 1, 4, 8, 16, 32, 48, 64], help="limits, in KiB")
    parser.add_argument("--names", nargs="*", default=NAMES, help="files that there is no space for")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="full-") as made:
        folder = Path(made)
        warm_up()
        (folder / "whole").mkdir()
        code, said = command(folder / "whole")
        assert code == 0, said
        size = sum(4 * -(-path.stat().st_size // (4 * KIB)) for path in (folder / "whole" / "run").rglob("*"))
        tries = [functools.partial(long_file, folder, kib) for kib in options.files]
        tries += [functools.partial(full_at, folder, name) for name in options.names]
        if can_mount(folder):
            # Pages of 4 KiB; beside the final files there are older checkpoints and one in the making.
            sizes = range(options.step, size + 256, options.step) if options.sizes is None else options.sizes
            tries += [functools.partial(full_disk, folder, kib) for kib in sizes]
        else:
            sys.stdout.write("no small file system can be mounted here: skipped, root is needed\n")
        rows = []
        for one in tries:
            rows.append(row := one())
            went = "went through" if row["exit"] == 0 else f"stopped at {row['file']}"
            lost_there = "ok" if row["ok"] else f"LOST: {'; '.join(row['wrong'])}"
            sys.stdout.write(f"{row['limit']:<32} {went:<36} {lost_there}\n")
            sys.stdout.flush()
    sys.stdout.write(summary(rows) + "\n")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        save(options.json, options, rows)
    return 0 if all(row["ok"] for row in rows) else 1


def summary(rows: list[dict[str, Any]]) -> str:
    """What it came to in one line."""
    stopped = [row for row in rows if row["exit"]]
    files = sorted({row["file"] for row in stopped})
    good = sum(row["ok"] for row in rows)
    return (
        f"{len(rows)} limits: {len(stopped)} stopped the run, at {', '.join(files)}; {good} said so in one line, lost "
        "nothing and ended in the bits of a run with space"
    )


def full_disk(folder: Path, kib: int) -> dict[str, Any]:
    """Run on a file system of a size, make space, and run again.

    Args:
        folder: With the run that had space, in `whole`.
        kib: The size.

    Returns:
        What happened, as plain values.
    """
    place = folder / f"disk-{kib}"
    with mounted(place, kib):
        first = command(place, folder / f"said-{kib}")
        wrong = lost(place / "run") if (place / "run").exists() else []
        subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
        again = command(place, folder / f"said-{kib}-again")
        wrong += differences(place / "run", folder / "whole" / "run")
        return _row(f"disk of {kib} KiB", first, again, wrong)


def long_file(folder: Path, kib: int) -> dict[str, Any]:
    """Run with a limit on the size of a file, and again without; see `full_disk`."""
    place = folder / f"limit-{kib}"
    place.mkdir()
    limits = (kib * KIB, resource.RLIM_INFINITY)
    return _twice(folder, place, f"files of {kib} KiB", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))


def full_at(folder: Path, name: str) -> dict[str, Any]:
    """Run with no space for the second half of whatever is written to a file of a name; see `full_disk`."""
    place = folder / f"full-{name}"
    place.mkdir()
    opened = open

    def open_full(path: Any, *arguments: Any, **named: Any) -> Any:
        file = opened(path, *arguments, **named)
        written = {"w", "a", "x"} & set("".join(map(str, arguments)))
        return _Full(file) if written and name in Path(path).name else file

    def patch() -> None:
        for module in (whole_files, metrics_file):
            module.open = open_full  # type: ignore[attr-defined]

    return _twice(folder, place, f"no space for {name}", patch)


class _Full:
    """An open file for half of whose content there is space."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Full":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _twice(folder: Path, place: Path, limit: str, before: Callable[[], object]) -> dict[str, Any]:
    """Run with a limit, and again without."""
    first = command(place, before=before)
    wrong = lost(place / "run") if (place / "run").exists() else []
    again = command(place)
    wrong += differences(place / "run", folder / "whole" / "run")
    return _row(limit, first, again, wrong)


def lost(folder: Path) -> list[str]:
    """What a run that stopped has left that is not whole.

    Args:
        folder: The run folder.

    Returns:
        Relative paths and what is wrong with them.
    """
    wrong = [f"{path.relative_to(folder)}: left over" for path in folder.rglob(".*")]
    wrong += [f"{path.relative_to(folder)}: not whole" for path in folder.rglob("*.pt") if not has_checksum(path)]
    for result in folder.rglob("result.json"):
        wrong += [f"{path.relative_to(folder)}: not what was written" for path in damaged(result.parent)]
    return wrong


def command(
    folder: Path, notes: Path | None = None, before: Callable[[], object] = lambda: None
) -> tuple[int, list[str]]:
    """Carry out `latephase compare` in a process of its own.

    Args:
        folder: Its run folder is `run` in it.
        notes: Where what it prints goes; None takes the folder itself.
        before: Called in the process first.

    Returns:
        Its exit code and the lines that it wrote to stderr.
    """
    arguments = ["compare", "digits-noisy", METHODS, *OPTIONS, "--workers=1", "--output", str(folder / "run")]
    notes = notes or folder
    notes.mkdir(exist_ok=True)
    errors = notes / "errors.txt"
    errors.write_text("")

    def work(_: Marks) -> int:
        # A tenth of what is printed: the limit on files is for the run's.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115
        reading, writing = sys.__stderr__, _Lines()
        sys.stderr = writing  # type: ignore[assignment]
        before()
        from latephase.cli import main as command_line

        code = command_line(arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        errors.write_text(writing.text)
        sys.stderr = reading
        return code

    attempt = Forked(work, notes)
    while attempt.code() is None:
        time.sleep(0.005)
    return attempt.code() or 0, errors.read_text().splitlines()


class _Lines:
    text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...


@contextlib.contextmanager
def mounted(place: Path, kib: int) -> Iterator[None]:
    """Mount an empty file system of a size."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", place], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a small file system."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        with mounted(folder / "probe", 64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _row(limit: str, first: tuple[int, list[str]], again: tuple[int, list[str]], wrong: list[str]) -> dict[str, Any]:
    code, lines = first
    found = [re.search(r"(?:no space left on the disk for|cannot write) (\S+?)[;:]", line) for line in lines]
    if code and not (code == 2 and len(lines) == 1 and found[0]):
        wrong.append(f"exit code {code} and {len(lines)} lines: {' | '.join(lines)[-300:]}")
    if again[0] or again[1]:
        wrong.append(f"with space again exit code {again[0]}: {' | '.join(again[1])[-300:]}")
    file = Path(found[0][1]).name if found and found[0] else ""
    return {"limit": limit, "exit": code, "file": file, "ok": not wrong, "wrong": wrong}


if __name__ == "__main__":
    sys.exit(main())
