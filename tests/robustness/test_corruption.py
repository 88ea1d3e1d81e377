"""What robustness/corruption.py does at full size, in small: no damaged file is loaded as something else."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / folder) for folder in ("robustness", "benchmarks")]

import corruption  # noqa: E402
import files_read  # noqa: E402
import outcomes  # noqa: E402
from damage import damages  # noqa: E402

CHEAP = [kind for kind in files_read.KINDS if kind.cheap]


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits the memory of what it forks")
@pytest.mark.parametrize("kind", CHEAP, ids=lambda kind: kind.name)
def test_a_damaged_file_is_refused_replaced_or_harmless(kind: files_read.Kind, tmp_path: Path) -> None:
    found = corruption.try_kind(kind, flips=6, seed=1, folder=tmp_path, cuts=4)
    assert not found["failures"], found["first_failures"]
    counts = [outcome for damage in found["outcomes"].values() for outcome in damage]
    # A damaged text in the cache is unpacked again.
    assert set(counts) - {outcomes.HARMLESS} or kind.name.startswith("unpacked")
    assert bool(kind.unchecked) or outcomes.UNDETECTABLE not in counts


def test_every_kind_of_damage_is_made_and_changes_the_file() -> None:
    raw = bytes((i * i // 7) % 255 + 1 for i in range(10_000))
    made = list(damages(raw, flips=20, seed=0))
    assert [what for what, _, _ in made].count("truncated") == 64
    assert {what for what, _, _ in made} == {"truncated", "bit flipped", "block zeroed", "halves swapped"}
    assert all(content != raw for _, _, content in made)
    flipped = [content for what, _, content in made if what == "bit flipped"]
    assert all(sum((a ^ b).bit_count() for a, b in zip(raw, content, strict=True)) == 1 for content in flipped)
    assert len(set(flipped)) == 20


def test_what_is_loaded_as_something_else_counts_as_a_failure(tmp_path: Path) -> None:
    """A reader that trusts everything: the judge has to notice."""
    trusting = files_read.Kind("trusting", files_read._result, lambda path: {"raw": path.read_bytes().hex()})
    found = corruption.try_kind(trusting, flips=5, seed=0, folder=tmp_path, cuts=4)
    assert found["failures"] == sum(sum(counts.values()) for counts in found["outcomes"].values())
    assert "loaded something else" in found["first_failures"][0]
    assert "FAILURE" in corruption.table([found])


def test_a_crash_and_a_hang_are_counted_and_the_rest_goes_on() -> None:
    import os
    import time

    import contained

    def do(task: int) -> str:
        if task == 1:
            os.abort()
        if task == 3:
            time.sleep(60)
        return f"done {task}"

    assert list(contained.each(range(5), lambda: do, seconds=1.0)) == ["done 0", "crash", "done 2", "hang", "done 4"]
