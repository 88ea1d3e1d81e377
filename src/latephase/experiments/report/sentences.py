"""What the numbers of a setting say, in sentences made from them."""

from __future__ import annotations

from typing import Any

from latephase.experiments.report.numbers import difference, interval, mean, number, resolved


def headline(setting: dict[str, Any]) -> str:
    """The one sentence that stands above everything else.

    Args:
        setting: A setting of results.json.

    Returns:
        The sentence.
    """
    methods = setting["methods"]
    versus = methods.get("late-phase", {}).get("against", {}).get("base")
    if versus is None:
        name, only = next(iter(methods.items()))
        return f"{_capital(only['label'] or name)} reaches {mean(only['test']['accuracy'], 'accuracy')}% accuracy."
    accuracy = versus["accuracy"]
    if accuracy["low"] is None:
        points = number(100 * accuracy["mean"], 2, signed=True)
        return f"Late-phase weights and plain SGD differ by {points} points in one seed, which establishes nothing."
    if not resolved(accuracy):
        return (
            "Late-phase weights and plain SGD are not told apart: the difference in accuracy is "
            f"{difference(accuracy, 'accuracy')} points."
        )
    better = "better" if accuracy["mean"] > 0 else "worse"
    return (
        f"Late-phase weights are {number(abs(100 * accuracy['mean']), 2)} points {better} than plain SGD "
        f"(95% interval {interval(accuracy, 'accuracy')})."
    )


def findings(setting: dict[str, Any]) -> list[str]:
    """What the controls, the members and the other scores say.

    Args:
        setting: A setting of results.json.

    Returns:
        A few sentences; those that need a method or an interval that is not there are left out.
    """
    candidates = (controls(setting), averaging(setting), members(setting), calibration(setting))
    return [sentence for sentence in candidates if sentence]


def caution(results: dict[str, Any]) -> str:
    """How far the intervals of a page carry.

    Args:
        results: The content of results.json.

    Returns:
        The sentences.
    """
    count = sum(
        paired["low"] is not None
        for setting in results["settings"]
        for paired in (
            *setting["contrasts"],
            *(p for m in setting["methods"].values() for v in m["against"].values() for p in v.values()),
        )
    )
    if not count:
        return "There is one seed only, so nothing here says how much of a difference is chance."
    return (
        f"The intervals are Student's t intervals at 95% of differences paired by seed; a star marks one that excludes "
        f"zero. There are {count} of them and they are not corrected for their number: about "
        f"{max(1, round(count / 20))} would exclude zero by chance alone. Standard errors are over seeds."
    )


def controls(setting: dict[str, Any]) -> str | None:
    """How much of the gain needs members at all.

    Args:
        setting: A setting of results.json.

    Returns:
        The sentence; None without controls or intervals.
    """
    contrasts = {c["control"]: c for c in setting["contrasts"] if c["low"] is not None}
    parts = []
    if "twin" in contrasts:
        parts.append(_contrast(contrasts["twin"], "its twin without members", "the members themselves add something"))
    if "lr-over-k" in contrasts:
        parts.append(
            _contrast(contrasts["lr-over-k"], "a learning rate divided by K", "it is more than a smaller learning rate")
        )
    if not parts:
        return None
    text = _capital("; ".join(parts)) + "."
    rate = setting["methods"].get("lr-over-k", {}).get("against", {}).get("base", {}).get("accuracy")
    if rate is not None and rate["low"] is not None:
        text += f" The smaller learning rate alone stands at {difference(rate, 'accuracy')} points against plain SGD."
    return text


def _contrast(paired: dict[str, Any], control: str, conclusion: str) -> str:
    text = f"against {control} late-phase stands at {difference(paired, 'accuracy')} points"
    if not resolved(paired):
        return f"{text}, which does not tell the two apart"
    return f"{text}, so {conclusion}" if paired["mean"] > 0 else f"{text}, so the control does better"


def averaging(setting: dict[str, Any]) -> str | None:
    """SWA beside base, and late-phase + SWA beside SWA.

    Args:
        setting: A setting of results.json.

    Returns:
        The sentence; None without SWA or with a single seed.
    """
    methods = setting["methods"]
    swa = methods.get("swa", {}).get("against", {}).get("base", {}).get("accuracy")
    if swa is None or swa["low"] is None:
        return None
    text = f"SWA stands at {difference(swa, 'accuracy')} points against plain SGD"
    both = methods.get("late-phase+swa", {}).get("against", {}).get("swa", {}).get("accuracy")
    if both is not None:
        text += f", late-phase with SWA at {difference(both, 'accuracy')} against SWA"
    return text + "."


def members(setting: dict[str, Any]) -> str | None:
    """The averaged model beside the ensemble and the mean member.

    Args:
        setting: A setting of results.json.

    Returns:
        The sentence; None if late-phase training is not among the methods.
    """
    late = setting["methods"].get("late-phase")
    if late is None or late["ensemble"] is None:
        return None
    model = late["test"]["accuracy"]["mean"]
    ensemble = 100 * (model - late["ensemble"]["accuracy"]["mean"])
    member = 100 * (model - late["member_mean"]["accuracy"]["mean"])
    over = "means over seeds, without an interval" if late["test"]["accuracy"]["n"] > 1 else "one seed"
    return (
        "The averaged model, which costs what one network costs, differs in accuracy by "
        f"{number(ensemble, 2, signed=True)} points from the ensemble of its members' predictions and by "
        f"{number(member, 2, signed=True)} points from the mean member ({over})."
    )


def calibration(setting: dict[str, Any]) -> str | None:
    """Whether the gain is in the probabilities too.

    Args:
        setting: A setting of results.json.

    Returns:
        The sentence; None without late-phase training, without base, or with a single seed.
    """
    versus = setting["methods"].get("late-phase", {}).get("against", {}).get("base")
    if versus is None or versus["nll"]["low"] is None:
        return None
    parts = []
    for metric, name in (("nll", "negative log-likelihood"), ("ece", "calibration error")):
        if not resolved(versus[metric]):
            parts.append(f"{name} is not told apart from plain SGD's")
        else:
            parts.append(f"{name} is {'higher' if versus[metric]['mean'] > 0 else 'lower'} than plain SGD's")
        parts[-1] += f" ({difference(versus[metric], metric)})"
    return f"Of late-phase training, {' and '.join(parts)}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
