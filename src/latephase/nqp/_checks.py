"""Argument checks: every refusal names the argument, its value and the limit."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray


def whole_number(name: str, value: object, minimum: int) -> int:
    """Return ``value`` as an int of at least ``minimum``; a bool or a fraction is refused."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} = {value!r} is not an integer; need an integer >= {minimum}") from None
    if number < minimum:
        raise ValueError(f"{name} = {number} is too small; need an integer >= {minimum}")
    return number


def real_number(
    name: str, value: object, *, above: float | None = None, at_least: float | None = None, limit: str = ""
) -> float:
    """Return ``value`` as a finite float, strictly ``above`` or ``at_least`` a bound."""
    need = limit or (f"a finite number > {above:g}" if above is not None else "a finite number")
    if at_least is not None and not limit:
        need = f"a finite number >= {at_least:g}"
    try:
        if isinstance(value, bool | np.bool_ | str):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{name} = {value!r} is not a real number; need {need}") from None
    too_low = (above is not None and number <= above) or (at_least is not None and number < at_least)
    if not np.isfinite(number) or too_low:
        raise ValueError(f"{name} = {number:g} is out of range; need {need}")
    return number


def fraction(name: str, value: object) -> float:
    """Return ``value`` as a float in [0, 1)."""
    need = f"0 <= {name} < 1"
    number = real_number(name, value, at_least=0.0, limit=need)
    if number >= 1.0:
        raise ValueError(f"{name} = {number:g} is out of range; need {need}")
    return number


def vector(name: str, value: ArrayLike, size: int | None = None, *, non_negative: bool = True) -> NDArray[np.float64]:
    """Return ``value`` as a read-only float64 vector; with ``size`` a scalar is repeated to that length."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} = {value!r} is not an array of real numbers") from None
    if size is None and (array.ndim != 1 or array.size == 0):
        raise ValueError(f"{name} has shape {array.shape}; need (n,) with n >= 1")
    if size is not None:
        if array.shape not in ((), (size,)):
            raise ValueError(f"{name} has shape {array.shape}; need a scalar or ({size},), as curvature has")
        array = np.broadcast_to(array, (size,)).copy()
    bad = ~np.isfinite(array) | ((array < 0) & non_negative)
    if bad.any():
        index = int(np.argmax(bad))
        need = "finite values >= 0" if non_negative else "finite values"
        raise ValueError(f"{name}[{index}] = {array[index]:g} is out of range; need {need}")
    array.flags.writeable = False
    return array


def counts(name: str, value: int | Sequence[int] | NDArray[np.integer]) -> tuple[list[int], bool]:
    """Return strictly increasing counts >= 0 as a list, and whether one single count was given."""
    if np.ndim(value) == 0:
        return [whole_number(name, value, 0)], True
    entries: Iterable[object] = value  # type: ignore[assignment]
    numbers = [whole_number(f"{name}[{i}]", entry, 0) for i, entry in enumerate(entries)]
    if not numbers:
        raise ValueError(f"{name} is empty; need at least one count")
    for i in range(1, len(numbers)):
        if numbers[i] <= numbers[i - 1]:
            raise ValueError(
                f"{name}[{i}] = {numbers[i]} does not exceed {name}[{i - 1}] = {numbers[i - 1]};"
                " need an increasing sequence"
            )
    return numbers, False


def whole_rounds(minibatches: Sequence[int], round_size: int, start: int = 0) -> list[int]:
    """Return the number of rounds after ``start`` for every count; counts up to ``start`` give 0.

    A round takes ``round_size`` minibatches. Counts below ``start`` are plain training and need not be whole
    rounds.
    """
    rounds = []
    for count in minibatches:
        done, rest = divmod(max(count - start, 0), round_size)
        if rest:
            below = count - rest
            before = f"0..{start}, then " if start else ""
            raise ValueError(
                f"minibatches = {count} is not a whole number of rounds of {round_size} minibatches after"
                f" {start}; possible counts are {before}{start} + {round_size} * j, the nearest {below}"
                f" and {below + round_size}"
            )
        rounds.append(done)
    return rounds
