"""Beginning: what the argument `start` means, for every trainer alike."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import LatePhaseError, LatePhaseValueError
from ..start_signal import StartSignal

EPOCHS = re.compile(r"(\d+)e")
FORMS = "an epoch ('120e'), a number of optimizer steps (6000), a fraction of the run (0.6)"


class Beginning:
    """The moment at which something begins in a run: the late phase, or an average of its weights.

    Args:
        start: after so many epochs ("120e"), after so many optimizer steps (a whole number), after a fraction of the
            run's optimizer steps (a number between 0 and 1, rounded down to a step), or when a `latephase.StartSignal`
            says so ("auto").
        name: of the argument, for messages.
        auto: whether "auto" is one of the choices.

    Attributes:
        step: optimizer steps before it; None where that is not known: before `resolve`, with "auto", and with epochs of
            unknown length.
        signal: the `StartSignal` of "auto", from `resolve` on; None otherwise.

    Raises:
        LatePhaseValueError: none of these.

    Example:
        >>> beginning = Beginning("3e").resolve(steps_per_epoch=10, total_steps=50, members=2)
        >>> beginning.step, beginning.due(29), beginning.due(30)
        (30, False, True)
    """

    def __init__(self, start: str | float, *, name: str = "start", auto: bool = True) -> None:
        forms = FORMS + (" or 'auto'" if auto else "")
        self.start, self.name = start, name
        self.step: int | None = None
        self.signal: StartSignal | None = None
        self._epochs: int | None = None
        self._state: Mapping[str, Any] | None = None
        if isinstance(start, str):
            match = EPOCHS.fullmatch(start)
            if match is None and not (auto and start == "auto"):
                raise LatePhaseValueError(f"{name}: {start!r}; use {forms}")
            self._epochs = None if match is None else int(match[1])
        elif isinstance(start, bool) or not isinstance(start, (int, float)):
            raise LatePhaseValueError(f"{name}: {start!r}; use {forms}")
        elif isinstance(start, float) and not 0 < start < 1:
            raise LatePhaseValueError(
                f"{name}: {start}; a fraction lies between 0 and 1, and whole numbers (0 too) are optimizer steps"
            )
        elif start < 0:
            raise LatePhaseValueError(f"{name}: {start}; use at least 0 optimizer steps")

    @property
    def automatic(self) -> bool:
        """Whether it is left to the training loss."""
        return self.start == "auto"

    def resolve(
        self,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
        *,
        members: int,
        epochs: int | None = None,
    ) -> "Beginning":
        """Fit it to a run.

        Args:
            steps_per_epoch: optimizer steps of one epoch; None where the data has no length.
            total_steps: optimizer steps of the whole run; None where it has no known end.
            members: K, for "auto".
            epochs: epochs of the whole run, for where `steps_per_epoch` is not known.

        Returns:
            This object.

        Raises:
            LatePhaseValueError: a fraction of a run without end, a beginning after the end, or a state that was loaded
                of another run; the message says what would work.
        """
        if self.automatic:
            self.signal = StartSignal(members, total_steps)
            if self._state is not None:
                self.signal.load_state_dict(self._state)
            return self
        if self._epochs is not None:
            self.step = None if steps_per_epoch is None else self._epochs * steps_per_epoch
            if epochs is not None and self._epochs >= epochs:
                raise LatePhaseValueError(f"{self.name}: {self.start!r}, and the run ends after {epochs} epochs")
        elif isinstance(self.start, float):
            if total_steps is None:
                raise LatePhaseValueError(
                    f"{self.name}: {self.start} is a fraction of the run, whose length is not known; limit the run's "
                    "steps, or use a number of optimizer steps or 'auto'"
                )
            self.step = int(self.start * total_steps)
        else:
            self.step = int(self.start)
        if self.step is not None and total_steps is not None and self.step >= total_steps:
            raise LatePhaseValueError(
                f"{self.name}: {self.start!r} is after optimizer step {self.step}, and the run ends after "
                f"{total_steps}; use fewer, or a fraction such as 0.6"
            )
        return self

    def due(
        self,
        step: int,
        loss: float | Tensor | None = None,
        *,
        lr: float | None = None,
        epoch: int | None = None,
    ) -> bool:
        """Ask whether it is time, once before every optimizer step.

        Args:
            step: optimizer steps so far.
            loss: for "auto", the loss of the last one (the mean over ranks, so that these agree); None before the
                first.
            lr: for "auto", the learning rate of the last one.
            epoch: epochs completed so far; needed where `resolve` was not given their length.

        Returns:
            Whether `step` optimizer steps (or `epoch` epochs) are enough, or the signal has spoken up.

        Raises:
            LatePhaseError: before `resolve`, or without the epoch where that is all there is to count.
        """
        if self.signal is not None:
            if loss is not None:
                self.signal.update(loss, lr)
            return self.signal.started is not None
        if self._epochs is not None and epoch is not None:
            return epoch >= self._epochs
        if self.step is None:
            raise LatePhaseError(
                f"{self.name}: {self.start!r} is not fitted to a run; call resolve(), or give the epoch"
            )
        return step >= self.step

    def state_dict(self) -> dict[str, Any]:
        """What resumes it: the signal's state with "auto", else nothing; numbers, strings and lists of them."""
        if self.signal is not None:
            return self.signal.state_dict()
        return dict(self._state or {})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume from `state_dict()`, before or after `resolve`.

        Args:
            state_dict: what it returned.

        Raises:
            LatePhaseValueError: the state of a signal with other arguments; nothing changed.
        """
        if not self.automatic or not state_dict:
            return
        if self.signal is not None:
            self.signal.load_state_dict(state_dict)
        self._state = state_dict
