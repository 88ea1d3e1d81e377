"""Random programs over random models, families and life cycles: what was run, and what broke.

    python robustness/fuzz.py --examples 20000

The state machine is tests/robustness/machine.py, whose laws the fast tests hold over a few hundred programs. Here every
part of `--chunk` programs has a seed of its own, so that a failure can be had again alone.
"""

import argparse
import contextlib
import io
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "tests/robustness", "benchmarks")]

import torch  # noqa: E402
from hypothesis import HealthCheck, Phase, seed, settings  # noqa: E402
from hypothesis.stateful import run_state_machine_as_test  # noqa: E402

from environment import save  # noqa: E402
from machine import LifeCycle  # noqa: E402
from tally import Tally  # noqa: E402


def explore(number: int, examples: int, steps: int, shrink: bool = True) -> tuple[Tally, str]:
    """Run random programs.

    Args:
        number: the seed.
        examples: how many programs.
        steps: calls in a program, at most.
        shrink: look for the shortest program that fails in the same way.

    Returns:
        The counts, and the shrunk program with its traceback where one failed, else nothing.
    """
    torch.set_num_threads(1)
    tally = Tally()
    machine = seed(number)(type("LifeCycle", (LifeCycle,), {"tally": tally}))
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run_state_machine_as_test(machine, settings=chosen)
    except Exception as error:
        program = "\n".join(getattr(error, "__notes__", ()))
        trace = "".join(traceback.format_exception(error, chain=False)).replace(f"{ROOT}{os.sep}", "")
        return tally, f"seed {number}\n{said.getvalue()}{program}\n{trace}"
    return tally, ""


def explore_all(options: argparse.Namespace) -> tuple[Tally, list[str]]:
    """All parts, over processes; what has been found is saved after each."""
    total, failures, begun = Tally(), [], time.perf_counter()
    parts = range(options.seed, options.seed + -(-options.examples // options.chunk))
    with ProcessPoolExecutor(options.processes) as pool:
        runs = [pool.submit(explore, number, options.chunk, options.steps) for number in parts]
        for run in as_completed(runs):
            tally, failure = run.result()
            total.merge(tally)
            if failure:
                failures.append(failure)
                print(failure, flush=True)
            print(f"{total.examples:6d} programs, {len(failures)} failures", flush=True)
            figures = total.figures() | {"seconds": round(time.perf_counter() - begun), "failures": failures}
            save(options.json, options, figures, "figures")
    return total, failures


def show(figures: dict[str, Any]) -> None:
    """Print the counts."""
    for name, value in figures.items():
        print(f"{name}: {value if not isinstance(value, dict) else ''}")
        for key, count in value.items() if isinstance(value, dict) else ():
            print(f"  {count:7d}  {key}")


def main() -> int:
    """Run, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=20000, help="random programs")
    parser.add_argument("--steps", type=int, default=16, help="calls in a program, at most")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first part")
    parser.add_argument("--chunk", type=int, default=250, help="programs that share a seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", default="results/robustness/fuzz.json", help="file for the figures")
    options = parser.parse_args()
    print(f"seeds {options.seed} to {options.seed + -(-options.examples // options.chunk) - 1}")
    Path(options.json).parent.mkdir(parents=True, exist_ok=True)
    tally, failures = explore_all(options)
    show(tally.figures())
    print(f"failures: {len(failures)}")
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
