"""How a setting is spoken of: which score matters first, and what its samples are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from latephase.experiments.report.numbers import SCORES, Score

_IMAGES = ("accuracy", "nll", "ece", "brier")
_OPTIMIZERS = {"sgd": "plain SGD", "adam": "plain Adam", "adamw": "plain AdamW"}


@dataclass(frozen=True)
class Wording:
    """The words of a setting.

    Attributes:
        metrics: The scores that are shown, the one that matters first.
        samples: `images` or `characters`.
        held_out: What a part of the data is called: `images` or `text`.
        plain: What plain training is called.
        late: Name of the late-phase method that the sentences are about; None without one.
        weights: The late-phase weights of that method, as a subject.
    """

    metrics: tuple[str, ...]
    samples: str
    held_out: str
    plain: str
    late: str | None
    weights: str

    @property
    def main(self) -> str:
        """Name of the score that matters first."""
        return self.metrics[0]

    @property
    def score(self) -> Score:
        """That score."""
        return SCORES[self.main]

    def better(self, paired: dict[str, Any]) -> bool:
        """Whether a difference in that score is for the better.

        Args:
            paired: `mean`.

        Returns:
            True for more accuracy, or for fewer bits.
        """
        return bool(paired["mean"] > 0) == self.score.more


def wording(setting: dict[str, Any]) -> Wording:
    """The words of a setting.

    Args:
        setting: A setting of results.json; files from before there was text are about images.

    Returns:
        The words.
    """
    characters = setting.get("kind", "images") == "characters"
    metrics = tuple(setting.get("metrics", _IMAGES))
    if "bpc" in metrics:
        # The same number in another unit.
        metrics = tuple(metric for metric in metrics if metric != "nll")
    optimizer = setting.get("recipe", {}).get("training", {}).get("optimizer", "sgd")
    methods = setting["methods"]
    families = [name for name in methods if name.startswith("late-phase") and "+" not in name]
    late = "late-phase" if "late-phase" in methods else families[0] if families else None
    family = "" if late is None else methods[late]["label"].partition(", ")[2]
    return Wording(
        metrics,
        samples="characters" if characters else "images",
        held_out="text" if characters else "images",
        plain=_OPTIMIZERS.get(optimizer, "plain training"),
        late=late,
        weights=f"Late-phase weights ({family})" if family else "Late-phase weights",
    )
