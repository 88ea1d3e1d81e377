"""Values of a setting's methods, put together over their runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from latephase.experiments.report.looks import Look, group_of, looks_of
from latephase.experiments.report.numbers import labelled, number, resolved
from latephase.experiments.report.plots import Dot, Series
from latephase.experiments.statistics import Difference, Summary, paired_difference, summarise

BASE = "base"
# What a run is asked for; None where it does not have it.
Get = Callable[[dict[str, Any]], Any]


class Methods:
    """The methods of a setting of evaluation.json, in the order in which they are drawn.

    Args:
        setting: The setting.

    Attributes:
        prefix: What the names of its figures begin with.
        looks: How each method is drawn.
        first: The method that sentences and figures of one method are about.
    """

    def __init__(self, setting: dict[str, Any], prefix: str) -> None:
        self.setting, self.prefix = setting, prefix
        self._methods: dict[str, dict[str, Any]] = setting["methods"]
        self.looks: dict[str, Look] = looks_of(self._methods)
        late = [m for m in self.looks if group_of(m) == "late-phase"]
        preferred = ("late-phase", *late, *reversed(self.looks))
        self.first = next(m for m in preferred if m in self._methods)

    @property
    def names(self) -> list[str]:
        """Every method."""
        return list(self.looks)

    @property
    def several_seeds(self) -> bool:
        """Whether there is a spread over seeds."""
        return len(self.setting["seeds"]) > 1

    def label(self, method: str) -> str:
        """What tables call a method, with its cost where that is not the others'."""
        return labelled(self._methods[method])

    def short(self, method: str) -> str:
        """What sentences call a method."""
        label: str = self._methods[method]["label"]
        return "plain SGD" if label == "base" else label

    def runs(self, method: str) -> list[dict[str, Any]]:
        """The runs of a method, one for each seed."""
        runs: list[dict[str, Any]] = self._methods[method]["runs"]
        return runs

    def with_(self, get: Get) -> list[str]:
        """The methods of which some run has a value."""
        return [m for m in self.names if any(get(run) is not None for run in self.runs(m))]

    def values(self, method: str, get: Get) -> list[Any]:
        """The values of the runs that have one."""
        return [value for value in map(get, self.runs(method)) if value is not None]

    def summary(self, method: str, get: Get) -> Summary | None:
        """Mean over seeds with its standard error; None if no run has a value."""
        values = self.values(method, get)
        return summarise(values) if values else None

    def against_base(self, method: str, get: Get) -> Difference | None:
        """The difference to base, paired by seed; None without base or with fewer than two common seeds."""
        if BASE not in self._methods or method == BASE:
            return None
        pairs = [(get(a), get(b)) for a, b in zip(self.runs(method), self.runs(BASE), strict=True)]
        pairs = [pair for pair in pairs if None not in pair]
        if len(pairs) < 2:
            return None
        return paired_difference([a for a, _ in pairs], [b for _, b in pairs])

    def rows(self, get: Get, factor: float = 1.0, bar: Get | None = None, own: Get | None = None) -> list[Dot]:
        """A row for each method that has a value, with its standard error over seeds.

        Args:
            get: The value.
            factor: What it is multiplied by.
            bar: A second value, drawn as an upright bar.
            own: Half the width of a single run's own interval, where there is one seed.

        Returns:
            The rows.
        """
        rows = []
        for method in self.with_(get):
            values = self.summary(method, get)
            assert values is not None
            middle, error = factor * values["mean"], values["se"]
            if error is None and own is not None:
                error = own(self.runs(method)[0])
            low, high = (None, None) if error is None else (middle - factor * error, middle + factor * error)
            second = self.summary(method, bar) if bar is not None else None
            beside = None if second is None else factor * second["mean"]
            rows.append(Dot(self.label(method), middle, low, high, self.looks[method], group_of(method), beside))
        return rows

    def curve(self, method: str, x: Sequence[float], get: Get, own: Get | None = None, factor: float = 1.0) -> Series:
        """A curve, the mean over seeds, with a band of one standard error.

        Args:
            method: The method.
            x: Positions.
            get: The values of a run, one for each position.
            own: A run's own standard errors, for where there is one seed.
            factor: What values are multiplied by.

        Returns:
            The curve.
        """
        runs = [run for run in self.runs(method) if get(run) is not None]
        columns = [summarise(column) for column in zip(*map(get, runs), strict=True)]
        y = [factor * c["mean"] for c in columns]
        errors = [c["se"] for c in columns]
        if len(runs) == 1 and own is not None:
            errors = list(own(runs[0]))
        low = high = None
        if None not in errors:
            spread = [factor * float(e or 0.0) for e in errors]
            low = [a - e for a, e in zip(y, spread, strict=True)]
            high = [a + e for a, e in zip(y, spread, strict=True)]
        return Series(self.label(method), list(x), y, self.looks[method], group_of(method), low, high)

    def compared(self, get: Get, what: str, decimals: int, factor: float = 1.0, unit: str = "") -> str | None:
        """A sentence on how the first method stands against base; it claims what the interval shows.

        Args:
            get: The value.
            what: What it is called.
            decimals: Digits after the point.
            factor: What it is multiplied by.
            unit: Unit of the product.

        Returns:
            The sentence; None where there is nothing to compare.
        """
        paired = self.against_base(self.first, get)
        if paired is None:
            return None
        name, base = self.short(self.first), self.short(BASE)
        text = f"{interval_text(paired, decimals, factor)} {unit}".strip()
        if not resolved(dict(paired)):
            return f"{capital(name)} and {base} are not told apart in {what} ({text})."
        return f"{capital(name)} has {'a higher' if paired['mean'] > 0 else 'a lower'} {what} than {base} ({text})."


def capital(text: str) -> str:
    """Text with a capital at its beginning.

    Args:
        text: The text.

    Returns:
        The same, changed in its first letter at most.
    """
    return text[:1].upper() + text[1:]


def mean_text(summary: Summary | None, decimals: int, factor: float = 1.0) -> str:
    """A mean with its standard error.

    Args:
        summary: The mean; None is written as nothing.
        decimals: Digits after the point.
        factor: What it is multiplied by.

    Returns:
        Such as `87.53 ± 0.48`.
    """
    if summary is None:
        return ""
    text = number(factor * summary["mean"], decimals)
    return text if summary["se"] is None else f"{text} ± {number(factor * summary['se'], decimals)}"


def interval_text(paired: Difference | None, decimals: int, factor: float = 1.0) -> str:
    """A paired difference with its 95% interval, starred where that excludes zero.

    Args:
        paired: The difference; None is written as nothing.
        decimals: Digits after the point.
        factor: What it is multiplied by.

    Returns:
        Such as `+2.56 [+1.77, +3.34]*`.
    """
    if paired is None or paired["low"] is None or paired["high"] is None:
        return ""
    middle, low, high = (
        number(factor * value, decimals, signed=True) for value in (paired["mean"], paired["low"], paired["high"])
    )
    return f"{middle} [{low}, {high}]{'*' if resolved(dict(paired)) else ''}"


def seeds_note(methods: Methods, get: Get) -> str:
    """Over how many seeds a value is known, which for what is costly are not all.

    Args:
        methods: The setting.
        get: The value.

    Returns:
        A sentence after a blank; empty where there is one seed only.
    """
    count = len(methods.values(methods.with_(get)[0], get))
    return f" Over {count} seed{'s' if count > 1 else ''}." if methods.several_seeds else ""
