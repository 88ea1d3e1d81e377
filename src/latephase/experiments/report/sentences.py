"""What the numbers of a setting say, in sentences made from them."""

from __future__ import annotations

from typing import Any

from latephase.experiments.report.numbers import difference, interval, mean, number, resolved
from latephase.experiments.report.wording import Wording, wording


def headline(setting: dict[str, Any]) -> str:
    """The one sentence that stands above everything else.

    Args:
        setting: A setting of results.json.

    Returns:
        The sentence.
    """
    methods, words = setting["methods"], wording(setting)
    score = words.score
    versus = methods[words.late]["against"].get("base") if words.late else None
    if versus is None:
        name, only = next(iter(methods.items()))
        value = mean(only["test"][words.main], words.main)
        return f"{capital(only['label'] or name)} reaches {value}{score.unit} {score.name}."
    paired = versus[words.main]
    if paired["low"] is None:
        gap = number(score.factor * paired["mean"], score.decimals, signed=True)
        return f"{words.weights} and {words.plain} differ by {gap} {score.gap} in one seed, which establishes nothing."
    if not resolved(paired):
        of = "" if score.gap == score.name else f" in {score.name}"
        return (
            f"{words.weights} and {words.plain} are not told apart: the difference{of} is "
            f"{difference(paired, words.main)} {score.gap}."
        )
    # Where less is better a gain is a negative difference.
    of = "" if score.more else " of the difference"
    size = number(abs(score.factor * paired["mean"]), score.decimals)
    return (
        f"{words.weights} are {size} {score.gap} {'better' if words.better(paired) else 'worse'} than {words.plain} "
        f"(95% interval{of} {interval(paired, words.main)})."
    )


def findings(setting: dict[str, Any]) -> list[str]:
    """What the controls, the members and the other scores say.

    Args:
        setting: A setting of results.json.

    Returns:
        A few sentences; those that need a method or an interval that is not there are left out.
    """
    candidates = (controls(setting), families(setting), averaging(setting), members(setting), calibration(setting))
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
    words = wording(setting)
    contrasts = {
        c["control"]: c
        for c in setting["contrasts"]
        if c["low"] is not None and c.get("method", words.late) == words.late
    }
    # The twin has no members; of a family that adds weights the method of its own name has these and no members.
    own = (words.late or "").removeprefix("late-phase-")
    named = {
        "twin": ("its twin without members", "the members themselves add something"),
        own: ("the same weights without members", "the members themselves add something"),
        "lr-over-k": ("a learning rate divided by K", "it is more than a smaller learning rate"),
    }
    parts = [_contrast(contrasts[name], *said, words) for name, said in named.items() if name in contrasts]
    if not parts:
        return None
    text = capital("; ".join(parts)) + "."
    rate = setting["methods"].get("lr-over-k", {}).get("against", {}).get("base", {}).get(words.main)
    if rate is not None and rate["low"] is not None:
        text += (
            f" The smaller learning rate alone stands at {difference(rate, words.main)} {words.score.gap} against "
            f"{words.plain}."
        )
    return text


def _contrast(paired: dict[str, Any], control: str, conclusion: str, words: Wording) -> str:
    text = f"against {control} late-phase stands at {difference(paired, words.main)} {words.score.gap}"
    if not resolved(paired):
        return f"{text}, which does not tell the two apart"
    return f"{text}, so {conclusion}" if words.better(paired) else f"{text}, so the control does better"


def families(setting: dict[str, Any]) -> str | None:
    """The other families of late-phase weights, where none of them is the late phase itself.

    Args:
        setting: A setting of results.json.

    Returns:
        The sentence; None with a single family, or a single seed.
    """
    methods, words = setting["methods"], wording(setting)
    if words.late in (None, "late-phase"):
        return None
    parts = []
    for name, values in methods.items():
        versus = values["against"].get("base", {}).get(words.main)
        if name.startswith("late-phase-") and "+" not in name and name != words.late and versus is not None:
            if versus["low"] is None:
                return None
            parts.append(f"{values['label']} at {difference(versus, words.main)}")
    return f"Against {words.plain} stand {', '.join(parts)} {words.score.gap}." if parts else None


def averaging(setting: dict[str, Any]) -> str | None:
    """SWA beside base, and late-phase + SWA beside SWA.

    Args:
        setting: A setting of results.json.

    Returns:
        The sentence; None without SWA or with a single seed.
    """
    methods, words = setting["methods"], wording(setting)
    swa = methods.get("swa", {}).get("against", {}).get("base", {}).get(words.main)
    if swa is None or swa["low"] is None:
        return None
    text = f"SWA stands at {difference(swa, words.main)} {words.score.gap} against {words.plain}"
    both = methods.get(f"{words.late}+swa", {}).get("against", {}).get("swa", {}).get(words.main)
    if both is not None:
        text += f", late-phase with SWA at {difference(both, words.main)} against SWA"
    return text + "."


def members(setting: dict[str, Any]) -> str | None:
    """The averaged model beside the ensemble and the mean member.

    Args:
        setting: A setting of results.json.

    Returns:
        The sentence; None if late-phase training is not among the methods.
    """
    words = wording(setting)
    late = setting["methods"].get(words.late)
    if late is None or late["ensemble"] is None:
        return None
    score, test = words.score, late["test"][words.main]
    ensemble, member = (
        number(score.factor * (test["mean"] - late[part][words.main]["mean"]), score.decimals, signed=True)
        for part in ("ensemble", "member_mean")
    )
    over = "means over seeds, without an interval" if test["n"] > 1 else "one seed"
    of = "" if score.gap == score.name else f" in {score.name}"
    return (
        f"The averaged model, which costs what one network costs, differs{of} by {ensemble} {score.gap} from the "
        f"ensemble of its members' predictions and by {member} {score.gap} from the mean member ({over})."
    )


def calibration(setting: dict[str, Any]) -> str | None:
    """Whether the gain is in the probabilities too.

    Args:
        setting: A setting of results.json.

    Returns:
        The sentence; None without late-phase training, without base, or with a single seed.
    """
    words = wording(setting)
    versus = setting["methods"].get(words.late, {}).get("against", {}).get("base")
    if versus is None or versus[words.main]["low"] is None:
        return None
    parts = []
    names = {"nll": "negative log-likelihood", "ece": "calibration error"}
    for metric, name in ((metric, name) for metric, name in names.items() if metric in words.metrics):
        if not resolved(versus[metric]):
            parts.append(f"{name} is not told apart from {words.plain}'s")
        else:
            parts.append(f"{name} is {'higher' if versus[metric]['mean'] > 0 else 'lower'} than {words.plain}'s")
        parts[-1] += f" ({difference(versus[metric], metric)})"
    return f"Of late-phase training, {' and '.join(parts)}."


def capital(text: str) -> str:
    """Text that begins a sentence.

    Args:
        text: Any text.

    Returns:
        The text with a capital first letter.
    """
    return text[:1].upper() + text[1:]
