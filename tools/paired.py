"""The paired difference of two methods in a results.json: python tools/paired.py RESULTS METHOD OTHER [METRIC]."""

import json
import sys
from pathlib import Path

from latephase.experiments.report.numbers import difference
from latephase.experiments.statistics import paired_difference


def main(path: str, method: str, other: str, metric: str = "accuracy") -> None:
    """For every setting, the mean of the differences seed by seed with its 95% t-interval."""
    for setting in json.loads(Path(path).read_text(encoding="utf-8"))["settings"]:
        ours, theirs = (setting["methods"][name]["by_seed"][metric] for name in (method, other))
        paired = difference(dict(paired_difference(ours, theirs)), metric)
        sys.stdout.write(f"{setting['title']}: {method} minus {other}, {metric}: {paired} ({len(ours)} seeds)\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
