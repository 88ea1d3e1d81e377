"""Progress bars with the time that is left, on a terminal; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from latephase.experiments.plan import Leg
from latephase.experiments.results import Setting


class StudyProgress:
    """One bar for each setting, in minibatches of all its methods and seeds.

    Args:
        settings: The settings.
        legs: All legs of all settings.
        missing: Those that are still to be trained, in the order of the indices of `advance`.
    """

    def __init__(self, settings: Sequence[Setting], legs: Sequence[Leg], missing: Sequence[Leg]) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("minibatches"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            refresh_per_second=4,
            disable=not console.is_terminal or not missing,
        )
        self._task_of: dict[int, TaskID] = {}
        todo = {id(leg): i for i, leg in enumerate(missing)}
        for setting in settings:
            total = sum(_steps(leg) for leg in setting.legs)
            ready = sum(_steps(leg) for leg in setting.legs if id(leg) not in todo)
            task = self._progress.add_task(setting.name, total=total, completed=ready)
            for leg in setting.legs:
                if id(leg) in todo:
                    self._task_of[todo[id(leg)]] = task

    def advance(self, leg: int, steps: int) -> None:
        """Move the bar of a leg's setting.

        Args:
            leg: Index into the legs that were missing.
            steps: Minibatches since the last call.
        """
        self._progress.advance(self._task_of[leg], steps)

    def __enter__(self) -> StudyProgress:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        if kind is None:
            for task in self._progress.tasks:
                self._progress.update(task.id, completed=task.total)
        self._progress.stop()


def _steps(leg: Leg) -> int:
    return leg.until - leg.begin
