"""Tables of the pages, from the JSON of `results/`, the paper's numbers and the models themselves.

A page has a comment such as

    <!-- results: digits-study/noisy.json base late-phase -->

with the table below it. `python docs/_ext/result_tables.py` writes every table anew; a test says which page is behind.
So a page reads the same on the site and on a file browser, and no number in it is typed by hand.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from torch import nn

import latephase
from latephase.experiments.models.lstm import CharLSTM
from latephase.experiments.models.wide_resnet import WideResNet
from latephase.experiments.report.numbers import SCORES, difference, labelled, mean
from latephase.experiments.statistics import paired_difference

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"(<!-- (results|differences|paper|speed|cost|starts): ([^>]*?) -->\n\n)((?:\|.*\n)+)?")


def _load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))
    return found


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _setting(name: str) -> dict[str, Any]:
    file, _, which = name.partition("#")
    settings = _load(file)["settings"]
    found: dict[str, Any] = next((each for each in settings if each["name"] == which), settings[0])
    return found


def results(name: str, *methods: str) -> str:
    """Scores of methods, and their paired differences to plain training and to SWA."""
    setting = _setting(name)
    metric = "bpc" if "bpc" in setting["methods"]["base"]["test"] else "accuracy"
    others = [each for each in ("base", "swa") if each in setting["methods"]]
    heads = ["method", SCORES[metric].head, *(f"minus {'SWA' if each == 'swa' else each}" for each in others)]
    rows = []
    for method in methods:
        found = setting["methods"][method]
        mine = found["by_seed"][metric]
        row = [labelled(found), mean(found["test"][metric], metric)]
        for other in others:
            theirs = setting["methods"][other]["by_seed"][metric]
            row.append("" if other == method else difference(dict(paired_difference(mine, theirs)), metric))
        rows.append(row)
        if metric == "accuracy":
            row += [
                mean({**found["test"]["nll"], "se": None}, "nll"),
                mean({**found["test"]["ece"], "se": None}, "ece"),
            ]
    return _table(heads + (["NLL", "ECE, %"] if metric == "accuracy" else []), rows)


def differences(*entries: str) -> str:
    """Paired differences, each `FILE:METHOD:OTHER`."""
    rows = []
    for entry in entries:
        name, method, other = entry.split(":")
        setting = _setting(name)
        metric = "bpc" if "bpc" in setting["methods"]["base"]["test"] else "accuracy"
        ours, theirs = (setting["methods"][each] for each in (method, other))
        paired = paired_difference(ours["by_seed"][metric], theirs["by_seed"][metric])
        words = f"{ours['label']} minus {theirs['label']}"
        rows.append([setting["title"], words, difference(dict(paired), metric), SCORES[metric].gap, str(paired["n"])])
    return _table(["setting", "difference", "95% interval", "unit", "seeds"], rows)


def paper(table: str, *rows: str) -> str:
    """Rows of a table of the paper."""
    tables = yaml.safe_load((ROOT / "src/latephase/experiments/reproduce/tables.yaml").read_text(encoding="utf-8"))
    metric = tables[table].get("metric", "accuracy")
    made = []
    for name in rows:
        row = tables[table]["rows"][name]
        value = "" if metric not in row else f"{row[metric]:.{3 if metric == 'bpc' else 2}f}"
        made.append([row["label"], f"{value} ± {row['sd']:.2f}" if "sd" in row else value or row.get("note", "")])
    unit = "bits per character" if metric == "bpc" else "test accuracy, %"
    return _table([tables[table]["title"], f"published, {unit}"], made)


def speed(*entries: str) -> str:
    """Rows of `results/speed/cpu-2-threads.json` whose names begin like this (`_` for a blank)."""
    rows = []
    for entry in entries:
        for name, row in _load("speed/cpu-2-threads.json")["rows"].items():
            found = row["measured"]
            if not name.startswith(entry.replace("_", " ")) or not isinstance(found, dict):
                continue
            for key, part in ({"": found} if "median" in found else found).items():
                value = (
                    f"{part['median']:.3f} [{part['low']:.3f}, {part['high']:.3f}]"
                    if isinstance(part, dict)
                    else f"{part:.3f}"
                )
                rows.append([f"{name}, {key}" if key else name, value])
    return _table(["on two CPU threads", "ratio, 95% interval"], rows)


def starts(*studies: str) -> str:
    """Test accuracy by T0, of studies `results/start-signal/STUDY-fixed.json`; `auto` from `STUDY-auto.json`."""
    columns: dict[str, dict[str, str]] = {}
    for study in studies:
        found = {}
        for part in ("fixed", "auto"):
            for setting in _load(f"start-signal/{study}-{part}.json")["settings"]:
                start = str(setting["recipe"]["late_phase"]["start"])
                found[start] = mean(setting["methods"]["late-phase"]["test"]["accuracy"], "accuracy")
                title = setting["title"] if part == "auto" else ""
        columns[title] = found
    keys = [*sorted(key for key in found if key != "auto"), "auto"]
    return _table(["T0", *columns], [[key, *(column[key] for column in columns.values())] for key in keys])


_FAMILIES: dict[str, Callable[[], latephase.Family]] = {
    "norm": latephase.Normalization,
    "head": latephase.Head,
    "full": latephase.Full,
    "rank-one": latephase.RankOne,
    "lora": latephase.LoRA,
    "hypernetwork": latephase.Hypernetwork,
    "parameters": lambda: latephase.Parameters("*.bias*"),
}


def cost(*families: str) -> str:
    """What one member has for itself, and what K = 10 of them take, in two networks."""
    made: list[tuple[str, Callable[[], nn.Module]]] = [
        ("WRN-28-10", lambda: WideResNet(28, 10, 10, 3)),
        ("LSTM of 500 units", lambda: CharLSTM(205, 500)),
    ]
    rows = []
    for family in families:
        for title, build in made:
            model = build()
            plain = sum(p.numel() for p in model.parameters())
            try:
                late = latephase.LatePhase(model, members=10, weights=[_FAMILIES[family]()])
            except latephase.LatePhaseValueError:
                rows.append([f"`{family}`", title, "none", "", "", ""])
                continue
            own = sum(p.numel() for p in late.late_parameters())
            base = sum(p.numel() for p in late.base_parameters())
            rows.append(
                [
                    f"`{family}`",
                    title,
                    f"{own:,}",
                    f"{100 * own / plain:.2g}" if own < plain else "100",
                    f"{4 * 10 * own / 2**20:,.1f} MiB",
                    f"{4 * base / 2**20:,.1f} MiB",
                ]
            )
    heads = [
        "family",
        "network",
        "weights of a member",
        "% of the network",
        "10 members parked",
        "sum of base gradients",
    ]
    return _table(heads, rows)


TABLES = {
    "results": results,
    "differences": differences,
    "paper": paper,
    "speed": speed,
    "cost": cost,
    "starts": starts,
}


def rewritten(text: str, without: str = "") -> str:
    """The text of a page with every table as it should be, but for those of the kind `without`."""

    def table(found: re.Match[str]) -> str:
        if found[2] == without:
            return found[0]
        return found[1] + TABLES[found[2]](*found[3].split()) + ("" if found[4] else "\n")

    return MARK.sub(table, text)


def pages() -> list[Path]:
    """Pages that have such tables."""
    return [page for page in sorted((ROOT / "docs").rglob("*.md")) if MARK.search(page.read_text(encoding="utf-8"))]


def main() -> None:
    """Write the tables of all pages."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := rewritten(text)) != text:
            page.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{page.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
