"""What each T0 costs against the best fixed one: python tools/regret.py RESULTS.json [RESULTS.json ...].

The files are those of `latephase tune --grid late_phase.start=...` and `latephase compare`, of one recipe and the same
seeds; scores are the test images'. The best fixed T0 is chosen by the same scores, which favours it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from latephase.experiments.report.numbers import difference, mean
from latephase.experiments.statistics import paired_difference, summarise


def starts(paths: list[str], method: str, metric: str) -> dict[str, dict[str, Any]]:
    """The scores, seed by seed, and the minibatches of the start, for every T0 in the files."""
    found = {}
    for path in paths:
        for setting in json.loads(Path(path).read_text(encoding="utf-8"))["settings"]:
            values = setting["methods"][method]
            entry = {"scores": values["by_seed"][metric], "seeds": setting["seeds"]}
            entry["at"] = values["started"]["mean"] / setting["minibatches"]["each_run"]
            found[str(setting["recipe"]["late_phase"]["start"])] = entry
    if len({tuple(entry["seeds"]) for entry in found.values()}) != 1:
        sys.exit("the settings have different seeds: " + str({name: entry["seeds"] for name, entry in found.items()}))
    return found


def main(paths: list[str], method: str = "late-phase", metric: str = "accuracy") -> None:
    """Print the mean score of every T0, and the best fixed one's minus it with a 95% t-interval."""
    found = starts(paths, method, metric)
    fixed = [name for name in found if name != "auto"]
    best = max(fixed, key=lambda name: summarise(found[name]["scores"])["mean"])
    seeds = len(found[best]["seeds"])
    sys.stdout.write(f"{metric} on {seeds} seeds; regret to T0 = {best}, the best fixed one\n")
    for name, entry in sorted(found.items()):
        regret = dict(paired_difference(found[best]["scores"], entry["scores"]))
        text = "0" if name == best else difference(regret, metric)
        score = mean(dict(summarise(entry["scores"])), metric)
        sys.stdout.write(f"  T0 = {name:5} (mean {entry['at']:.2f})  {score}  regret {text}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
