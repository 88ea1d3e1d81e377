"""Damaged and hostile files: every kind of file that the library reads back, damaged in every way, and read.

    python robustness/corruption.py --flips 500

Each outcome is one of: refused, with an error of the library's own that names the file; the previous good one used, and
said; harmless, that is, what was loaded is what was written, bit for bit. Anything else is a failure, and the exit code
is 1. Kinds without a checksum of their own are said to be so, and what cannot be noticed in them is counted apart.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("robustness", "benchmarks")]

import torch  # noqa: E402

import contained  # noqa: E402
import files_read  # noqa: E402
import hostile  # noqa: E402
import outcomes  # noqa: E402
from damage import PARTS, damages  # noqa: E402
from environment import save  # noqa: E402
from files_read import Kind  # noqa: E402
from latephase.checked_files import digest  # noqa: E402


def try_kind(kind: Kind, flips: int, seed: int, folder: Path, cuts: int = PARTS) -> dict[str, Any]:
    """Damage one file in all ways, one after another, and read it each time.

    Args:
        kind: what the file is.
        flips: how many single flipped bits.
        seed: of their places.
        folder: where to write.
        cuts: how many truncations.

    Returns:
        How often each outcome came of each damage, and the first failures.
    """
    torch.set_num_threads(1)
    path = kind.write(folder)
    raw = path.read_bytes()
    tasks = list(damages(raw, flips, seed, cuts))
    beside = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    def prepare() -> Callable[[Any], str]:
        torch.set_num_threads(1)
        restore()
        good = digest(kind.read(path))
        others = {digest(other) for other in kind.before(folder)} if kind.before else set()
        checked = not kind.unchecked

        def do(task: tuple[str, str, bytes]) -> str:
            restore()
            path.write_bytes(task[2])
            named = path.parent if kind.folder else None
            return outcomes.of(
                lambda: kind.read(path), good, others, path.name, named, checked=checked, abroad=kind.abroad
            )

        return do

    def restore() -> None:
        for file, content in beside.items():
            file.write_bytes(content)

    counts: dict[str, Counter[str]] = {}
    failures = []
    begun = time.perf_counter()
    for (what, where, _), outcome in zip(tasks, contained.each(tasks, prepare), strict=True):
        failed = outcome.startswith(outcomes.FAILURES)
        counts.setdefault(what, Counter())["failure" if failed else outcome] += 1
        if failed:
            failures.append(f"{what} {where}: {outcome}")
    return {
        "kind": kind.name,
        "bytes": len(raw),
        "unchecked": kind.unchecked,
        "outcomes": {what: dict(count) for what, count in counts.items()},
        "failures": len(failures),
        "first_failures": [failure.replace(str(folder), "...") for failure in failures[:10]],
        "seconds": round(time.perf_counter() - begun, 1),
    }


def try_hostile(cases: Sequence[hostile.Case], folder: Path) -> list[dict[str, Any]]:
    """Give the library each file that was made to do harm.

    Args:
        cases: the files.
        folder: where to write.

    Returns:
        What came of each.
    """
    torch.set_num_threads(1)
    found = contained.each(range(len(cases)), lambda: lambda i: hostile.attack(cases[i], folder / str(i)))
    return [{"case": case.name, "outcome": outcome} for case, outcome in zip(cases, found, strict=True)]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The outcomes of all damages as text, a line for each kind and damage.

    Args:
        rows: what `try_kind` returned.

    Returns:
        Lines.
    """
    lines = []
    for row in rows:
        lines.append(f"{row['kind']} ({row['bytes']:,} bytes, {row['seconds']} s)")
        for what, counts in row["outcomes"].items():
            lines.append(f"    {what:15} " + ", ".join(f"{outcome} {n}" for outcome, n in sorted(counts.items())))
        if row["unchecked"]:
            lines.append(f"    not detectable: {row['unchecked']}")
        lines += [f"    FAILURE {failure}" for failure in row["first_failures"]]
    return "\n".join(lines)


def main() -> int:
    """Read the options, try everything, print and save the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=500, help="single flipped bits for each kind of file")
    parser.add_argument("--seed", type=int, default=0, help="of their places")
    parser.add_argument("--only", default="", help="kinds whose name has this in it")
    parser.add_argument("--json", default="results/robustness/corruption.json", help="file for the figures")
    options = parser.parse_args()
    import files_handed_over

    rows: list[dict[str, Any]] = []
    for kind in (*files_read.KINDS, *files_handed_over.KINDS):
        if options.only in kind.name:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(try_kind(kind, options.flips, options.seed, Path(folder)))
            sys.stdout.write(table(rows[-1:]) + "\n")
            sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder:
        attacks = try_hostile([case for case in hostile.CASES if options.only in case.name], Path(folder))
    width = max((len(attack["case"]) for attack in attacks), default=0)
    sys.stdout.writelines(f"{attack['case']:{width}}  {attack['outcome']}\n" for attack in attacks)
    failed = sum(row["failures"] for row in rows)
    harmed = sum(not attack["outcome"].startswith(hostile.FINE) for attack in attacks)
    damaged = sum(sum(counts.values()) for row in rows for counts in row["outcomes"].values())
    sys.stdout.write(
        f"{damaged:,} damaged files of {len(rows)} kinds: {failed} failures; "
        f"{len(attacks)} hostile files: {harmed} failures\n"
    )
    if not options.only:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        save(options.json, options, {"damaged": rows, "hostile": attacks}, "figures")
    return int(bool(failed or harmed))


if __name__ == "__main__":
    sys.exit(main())
