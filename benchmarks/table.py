"""The whole table of what late-phase training costs, each row beside its target; writes results/speed/DEVICE.json.

    python benchmarks/table.py --device cpu --threads 2
    python benchmarks/table.py --device cuda
    python benchmarks/table.py --device cpu --tiny --pairs 6     # every row, at sizes that mean nothing
    python benchmarks/table.py --show results/speed/cpu-2-threads.json      # a file as Markdown

Times are ratios of two pieces of work in turn in one process; operators and bytes are counted. Rows for an accelerator
say "not measured" where there is none. A row that is measured again replaces the one in the file and the others stay,
so that --only can go through the table in several calls.
"""

import argparse
import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

import latephase
from environment import environment
from measures import (
    Options,
    Values,
    against_naive,
    against_plain,
    counted,
    growth,
    layout,
    life,
    loop_memory,
    lstm,
    one_large_batch,
    parallel_memory,
    prediction,
    transformer,
)

ACCELERATOR = "not measured: needs an accelerator"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        work: what is measured.
        target: what it should be.
        measure: does so.
        accelerator: whether a figure from a CPU means nothing.
    """

    work: str
    target: str
    measure: Callable[[Options], Values]
    accelerator: bool = False


def keep(file: Path, row: Row, found: object, here: Values, options: Options, seconds: float) -> None:
    """Put a row into the file, among those that earlier calls have measured, each with what it was measured on."""
    kept = json.loads(file.read_text())["rows"] if file.exists() else {}
    settings = {"threads": options.threads, "clock": "CPU seconds" if options.cpu_time else "seconds"}
    kept[row.work] = {"target": row.target, "measured": found, "took, s": round(seconds), **here, **settings}
    ordered = {each.work: kept[each.work] for each in ROWS if each.work in kept}
    file.write_text(json.dumps({"rows": ordered}, indent=1) + "\n")


def shown(found: object) -> str:
    """What was measured, for a person to read."""
    if isinstance(found, dict) and "median" in found:
        rest = [f"{value} {name}" for name, value in found.items() if name.startswith("operators")]
        return "; ".join([f"{found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}]", *rest])
    if isinstance(found, dict):
        return ", ".join(f"{name}: {shown(value)}" for name, value in found.items())
    return f"{found:,}" if isinstance(found, int) else f"{found:.3f}" if isinstance(found, float) else str(found)


def show(file: Path) -> None:
    """Print a file as Markdown."""
    print("| work | target | measured |\n|---|---|---|")
    for work, row in json.loads(file.read_text())["rows"].items():
        print(f"| {work} | {row['target']} | {shown(row['measured'])} |")


WRN_28 = {"depth": 28, "width": 10, "batch": 128, "bf16": True}
SMALL = {"depth": 16, "width": 1, "batch": 64}
COMPILED = {"depth": 10, "width": 1, "batch": 16, "members": 4, "compile": "inductor"}
ROWS = [
    Row("operators, WRN-16-2, K = 10", "at most 3 more in a turn than in a plain step", counted),
    Row("WRN-16-2, B=32, K=10: loop / plain", "lower end >= 0.99", against_plain("late-phase")),
    Row("WRN-16-2, B=32: no optimizer step at all / plain", "the limit", against_plain("no step")),
    Row("WRN-16-2: loop / K copies with K+1 optimizers, contiguous", ">= 1.3", against_naive(False)),
    Row("WRN-16-2: loop / K copies with K+1 optimizers, channels-last", ">= 1.0", against_naive(True)),
    Row("WRN-16-2: plain in channels-last / plain in contiguous memory", "what of that is the layout's", layout),
    Row("LSTM-500, B=32, T=128, rank-1, K=10: loop / plain", ">= 0.98", lstm),
    Row("WRN-28-10, B=128, bf16: loop / plain", ">= 1.00", against_plain("late-phase", **WRN_28), True),
    Row(
        "WRN-28-10, compiled: loop / plain", ">= 1.00", against_plain("late-phase", **WRN_28, compile="inductor"), True
    ),
    Row("WRN-16-1, B=64: parallel / plain at B", ">= 4", against_plain("late-phase, parallel", **SMALL), True),
    Row("WRN-16-1, B=64: parallel / plain at K*B", ">= 0.90", one_large_batch(**SMALL), True),
    Row("WRN-16-1, compiled: parallel / plain at K*B", ">= 0.90", one_large_batch(**SMALL, compile="inductor"), True),
    Row("transformer, norms: parallel / plain at K*B", ">= 0.90", transformer("norm"), True),
    Row("transformer, LoRA: parallel / plain at K*B", ">= 0.90", transformer(latephase.LoRA(rank=8)), True),
    Row("peak memory, loop, bytes", "<= 1.02 x plain + stacks + base gradients; in place without these", loop_memory),
    Row("peak memory, parallel, bytes", "<= 1.05 x plain at K*B", parallel_memory()),
    Row("WRN-10-1, compiled: peak memory, parallel, bytes", "the same", parallel_memory(**COMPILED)),
    Row("WRN-10-1, B=64: K members in one pass / predict()", ">= 3", prediction, True),
    Row("time of a turn with one member / with K", "flat within 1%", growth),
    Row("in units of a plain step", "< 1 each", life),
]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--instances", type=int, default=10, help="how many times both are built anew for these pairs")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of rows' names")
    parser.add_argument("--tiny", action="store_true", help="every row, at sizes whose figures mean nothing")
    parser.add_argument("--cpu-time", action="store_true", help="count the process's own seconds: for a busy machine")
    parser.add_argument("--json", help="file to write; by default results/speed/DEVICE.json, and none with --tiny")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing; print this file as Markdown")
    options = parser.parse_args()
    if options.show:
        show(options.show)
        return
    torch.set_num_threads(options.threads)
    here = environment(torch.device(options.device))
    device = re.sub(r"\W+", "-", str(here["device"])).strip("-").lower()
    file = options.json or (None if options.tiny else f"results/speed/{device}.json")
    for row in ROWS:
        if any(part in row.work for part in options.only):
            skipped = row.accelerator and not options.device.startswith("cuda") and not options.tiny
            begun = time.perf_counter()
            found = ACCELERATOR if skipped else row.measure(options)
            print(f"{row.work}\n  target {row.target}\n  {shown(found)}", flush=True)
            if file:
                keep(Path(file), row, found, here, options, time.perf_counter() - begun)


if __name__ == "__main__":
    main()
