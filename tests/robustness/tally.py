"""What a run of the state machine has come across."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """Counts of everything that the machine did and met."""

    examples: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    models: set[str] = field(default_factory=set)
    families: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    """How many times the phase was held against the reference."""

    def refused(self, error: BaseException) -> None:
        """Note a documented error, by its message without names and numbers."""
        text = re.sub(r"'[^']*'", "'...'", str(error).split("\n")[0])
        text = re.sub(r"\[[^\]]*\]", "[...]", text)
        self.refusals[f"{type(error).__name__}: {re.sub(r'[0-9]+', 'N', text)[:90]}"] += 1

    def merge(self, other: "Tally") -> None:
        """Take over what another process counted."""
        self.examples += other.examples
        self.compared += other.compared
        for name in ("rules", "refusals", "families"):
            getattr(self, name).update(getattr(other, name))
        self.models |= other.models

    def figures(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "examples": self.examples,
            "rules executed": self.rules.total(),
            "comparisons with the reference": self.compared,
            "distinct models": len(self.models),
            "rules": dict(self.rules.most_common()),
            "families": dict(self.families.most_common()),
            "documented refusals": dict(self.refusals.most_common()),
        }
