"""A process dies before, in the middle of and after each i/o call of a save, or the power fails there: old or new."""

import builtins
import fcntl
import itertools
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latephase.experiments.checkpoints import load_checkpoint, save_checkpoint, write_text
from latephase.whole_files import previous_of, remove_leftovers, write_whole

CALLS = [(os, "replace"), (os, "fsync"), (os, "open"), (os, "close"), (os, "mkdir"), (os, "unlink")]
CALLS += [(fcntl, "flock"), (builtins, "open")]
DEAD = 9


def state(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"w": torch.full((40,), float(step))}}


class Guard:
    """Counts i/o calls, writes them down, and ends the process, with nothing of it tidied up, at one of them."""

    def __init__(self, death: tuple[int, str] | None) -> None:
        self.death, self.names = death, list[str]()
        for module, name in CALLS:
            setattr(module, name, self.guarded(name, getattr(module, name)))

    def at(self, moment: str) -> bool:
        return self.death == (len(self.names), moment)

    def guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.names.append(name)
            if self.at("before"):
                os._exit(DEAD)
            try:
                result = function(*arguments, **named)
            finally:
                if self.at("after"):
                    os._exit(DEAD)
            return File(result, self) if name == "open" and hasattr(result, "write") else result

        return call


class File:
    """An open file that may die in the middle of a write, with half of it on the disk."""

    def __init__(self, file: Any, guard: Guard) -> None:
        self._file, self._guard = file, guard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        self._guard.names.append("write")
        if self._guard.at("before"):
            os._exit(DEAD)
        half = len(bytes(data)) // 2
        self._file.write(bytes(data)[:half])
        self._file.flush()
        if self._guard.at("middle"):
            os._exit(DEAD)
        self._file.write(bytes(data)[half:])
        self._file.flush()
        if self._guard.at("after"):
            os._exit(DEAD)
        return len(data)


def in_a_process(work: Callable[[], object], death: tuple[int, str] | None) -> tuple[int, list[str]]:
    """Do something in a process that dies at one of its calls: its exit code, and the calls if it lived."""
    reads, writes = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork where there are threads; this one execs nothing
        pid = os.fork()
    if not pid:
        code = 70
        try:
            guard = Guard(death)
            work()
            guard.death = None
            os.write(writes, json.dumps(guard.names).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writes)
    said = b"".join(iter(lambda: os.read(reads, 65536), b""))
    os.close(reads)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, json.loads(said) if said else []


def deaths(names: list[str], all_moments: bool) -> list[tuple[int, str]]:
    """Moments to die at. After a call is before the next one, and half of a write leaves more than none of it does."""
    if all_moments:
        moments = {"write": ("before", "middle", "after")}
        return [(i, moment) for i, name in enumerate(names, 1) for moment in moments.get(name, ("before", "after"))]
    once = [(i, "middle" if name == "write" else "before") for i, name in enumerate(names, 1)]
    return [*once, (len(names), "after")]


def nothing(path: Path) -> int | None:
    return None


def one(path: Path) -> int | None:
    save_checkpoint(path, state(1))
    return 1


def two(path: Path) -> int | None:
    save_checkpoint(path, state(0))
    return one(path)


def damaged(path: Path) -> int | None:
    """The newest was truncated after it was written; the one before it is what there is."""
    two(path)
    os.truncate(path, 700)
    return 0


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("situation", "all_moments"),
    [
        (two, False),
        *(pytest.param(start, True, marks=SLOW) for start in (nothing, one, two, damaged)),
    ],
)
def test_after_each_death_a_checkpoint_is_the_old_or_the_new_one(
    tmp_path: Path, situation: Callable[[Path], int | None], all_moments: bool
) -> None:
    def fresh(name: str) -> tuple[Path, int | None]:
        path = tmp_path / name / "run" / "checkpoint.pt"
        return path, situation(path)

    path, old = fresh("whole")
    code, names = in_a_process(lambda: save_checkpoint(path, state(2)), None)
    assert code == 0
    assert load_checkpoint(path)["step"] == 2
    assert names.count("replace") == {"nothing": 1, "damaged": 1}.get(situation.__name__, 2)
    assert names.count("fsync") >= 2, "the content, then the folder"
    assert names.count("write") > 5

    found = set()
    for number, (call, moment) in enumerate(deaths(names, all_moments)):
        path, old = fresh(str(number))
        code, _ = in_a_process(lambda path=path: save_checkpoint(path, state(2)), (call, moment))  # type: ignore[misc]
        where = f"{moment} call {call}, {names[call - 1]}"
        assert code == DEAD, where
        loaded = load_checkpoint(path)
        step = None if loaded is None else loaded["step"]
        assert step in (old, 2), where
        assert loaded is None or torch.equal(loaded["model"]["w"], state(step)["model"]["w"]), where
        found.add(step)
        save_checkpoint(path, state(3))
        assert load_checkpoint(path)["step"] == 3, where
        assert not list(path.parent.glob(".*")), where
    assert found == {old, 2}


def test_after_each_death_any_other_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, "old")
    _, names = in_a_process(lambda: write_text(path, "new, and longer"), None)
    for death in deaths(names, False):
        write_text(path, "old")
        assert in_a_process(lambda: write_text(path, "new, and longer"), death)[0] == DEAD
        assert path.read_text() in ("old", "new, and longer"), death


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    _, names = in_a_process(lambda: save_checkpoint(path, state(1)), None)
    in_a_process(lambda: save_checkpoint(path, state(2)), (names.index("write") + 2, "middle"))
    assert len(list(tmp_path.glob(".*.part"))) == 1

    def beside(file: Any) -> None:
        remove_leftovers(tmp_path)
        (mine,) = tmp_path.glob(".*.part")
        assert mine == Path(file.name)
        in_a_process(lambda: remove_leftovers(tmp_path), None)
        assert mine.exists()
        file.write(b"new")

    write_whole(tmp_path / "other", beside)
    assert (tmp_path / "other").read_bytes() == b"new"
    assert not list(tmp_path.glob(".*"))


class Disk:
    """What may be on the disk when the power fails: flushed content, and names in the order they were given."""

    def __init__(self, folder: Path) -> None:
        self.flushed = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.pending: list[tuple[str, str]] = []
        self.written: dict[str, bytes] = {}

    def outcomes(self) -> list[dict[str, bytes]]:
        """Every folder that may be found afterwards: any number of the names that were not flushed, in their order."""
        found = []
        for count in range(len(self.pending) + 1):
            names = dict(self.flushed)
            for source, target in self.pending[:count]:
                content = names.pop(source, self.written.get(source))
                if content is not None:
                    names[target] = content
            found.append(names)
        return found


@pytest.mark.parametrize("situation", [one, two, damaged])
def test_after_a_power_cut_a_checkpoint_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, situation: Callable[[Path], int | None]
) -> None:
    path = tmp_path / "run" / "checkpoint.pt"
    old = situation(path)
    disk = Disk(path.parent)
    moments = [disk.outcomes()]
    replace, fsync = os.replace, os.fsync

    def flush(descriptor: int) -> None:
        fsync(descriptor)
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if place.is_dir():
            disk.flushed = disk.outcomes()[-1]
            disk.pending.clear()
        else:
            disk.written[place.name] = place.read_bytes()
        moments.append(disk.outcomes())

    def rename(source: Path, target: Path) -> None:
        # Content that was not flushed before its name is: half of it, or nothing.
        disk.written.setdefault(Path(source).name, Path(source).read_bytes()[: Path(source).stat().st_size // 2])
        replace(source, target)
        disk.pending.append((Path(source).name, Path(target).name))
        moments.append(disk.outcomes())

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", flush)
        patch.setattr(os, "replace", rename)
        save_checkpoint(path, state(2))

    found = []
    for number, names in enumerate(itertools.chain.from_iterable(moments)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in names.items():
            (folder / name).write_bytes(content)
        found.append(load_checkpoint(folder / "checkpoint.pt")["step"])
        assert found[-1] in (old, 2), (number, sorted(names))
    assert set(found) == {old, 2}
    assert len(moments[-1]) == 1, "a save that has returned leaves nothing to chance"
    assert found[-1] == 2
    assert previous_of(path).exists() == (situation is not nothing)
