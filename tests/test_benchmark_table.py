"""The benchmarks' tables: every row gives figures, at sizes that mean nothing; the file says where they are from."""

import json
import logging
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import language
import table
import throughput


def figures(values: object) -> list[float]:
    """Every number in nested plain values."""
    if isinstance(values, dict):
        return [number for value in values.values() for number in figures(value)]
    return [float(values)] if isinstance(values, int | float) else []


def call(monkeypatch: pytest.MonkeyPatch, module: object, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
    module.main()  # type: ignore[attr-defined]


# One row of each kind; the whole table takes half a minute even so.
FEW = ["operators", "WRN-16-2, B=32, K=10", "WRN-16-1, B=64: parallel / plain at K*B", "memory, loop", "predict()"]


def chosen(parts: list[str]) -> list[str]:
    return [row.work for row in table.ROWS if any(part in row.work for part in parts)]


@pytest.fixture(scope="module", params=["few", pytest.param("all", marks=pytest.mark.slow)])
def kept(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table, measured once at the tiniest size."""
    works = chosen(FEW) if request.param == "few" else [row.work for row in table.ROWS]
    file = tmp_path_factory.mktemp("table") / "cpu.json"
    logging.disable()  # pytest would keep every line that the compiler writes about its work
    try:
        with pytest.MonkeyPatch.context() as patch:
            call(patch, table, "--tiny", "--pairs", 6, "--threads", 1, "--json", file, "--only", *works)
    finally:
        logging.disable(logging.NOTSET)
    assert list(json.loads(file.read_text())["rows"]) == works
    return file


def test_no_two_rows_of_the_table_have_one_name() -> None:
    assert len({row.work for row in table.ROWS}) == len(table.ROWS)


def test_every_row_of_the_table_gives_figures(kept: Path) -> None:
    rows = json.loads(kept.read_text())["rows"]
    for work, row in rows.items():
        numbers = figures(row["measured"])
        assert numbers, work
        assert all(math.isfinite(number) and number > 0 for number in numbers), work
        assert (work, row["target"]) in {(each.work, each.target) for each in table.ROWS}


def test_every_row_says_what_it_was_measured_on(kept: Path) -> None:
    for row in json.loads(kept.read_text())["rows"].values():
        assert row["device"].startswith("CPU")
        assert row["threads"] == 1
        assert {"command", "commit", "torch", "python", "latephase", "clock"} <= set(row)


def test_a_row_that_is_measured_again_replaces_itself_alone(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads(kept.read_text())["rows"]
    marked = {work: {**row, "commit": "an earlier one"} for work, row in before.items()}
    file = tmp_path / "cpu.json"
    file.write_text(json.dumps({"rows": marked}))
    call(monkeypatch, table, "--tiny", "--pairs", 6, "--threads", 1, "--only", "operators", "--json", file)
    after = json.loads(file.read_text())["rows"]
    assert list(after) == list(before)
    again = [work for work, row in after.items() if row["commit"] != "an earlier one"]
    assert again == [work for work in before if "operators" in work] != []
    # What is counted does not depend on the machine's load.
    for work in again:
        assert after[work]["measured"] == before[work]["measured"]
    assert {work: row for work, row in after.items() if work not in again} == {
        work: row for work, row in marked.items() if work not in again
    }


def test_rows_for_an_accelerator_say_so_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in table.ROWS if row.accelerator)
    file = tmp_path / "cpu.json"
    call(monkeypatch, table, "--only", row.work, "--threads", 1, "--json", file)
    rows = json.loads(file.read_text())["rows"]
    assert {work: row["measured"] for work, row in rows.items()} == {
        each.work: table.ACCELERATOR for each in table.ROWS if row.work in each.work
    }


def test_tiny_figures_are_kept_only_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, table, "--tiny", "--pairs", 6, "--threads", 1, "--only", "operators")
    assert not list(tmp_path.rglob("*.json"))


def test_throughput_and_memory_against_plain_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "out.json"
    sizes = ["--depth", 10, "--width", 1, "--batch", 2, "--members", 2, "--pairs", 6, "--threads", 1]
    call(monkeypatch, throughput, *sizes, "--json", file)
    kept = json.loads(file.read_text())
    assert kept["environment"]["device"].startswith("CPU")
    assert kept["settings"]["members"] == 2
    ratios = [row for name, row in kept["rows"].items() if name.endswith("samples per second")]
    assert len(ratios) == 3
    for ratio in ratios:
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    peaks = kept["rows"]["peak memory, bytes"]
    assert peaks["late-phase"] > peaks["plain"] > 0
    assert peaks["parked members"] > 0


def test_language_models_against_plain_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "SETTINGS", {"lstm-8": (4, 2, ["rank-one"]), "transformer-1-32": (4, 2, ["norm"])})
    file = tmp_path / "out.json"
    call(monkeypatch, language, "--members", 2, "--pairs", 6, "--threads", 1, "--json", file)
    kept = json.loads(file.read_text())
    assert set(kept["rows"]) == {"lstm-8, rank-one", "transformer-1-32, norm"}
    for row in kept["rows"].values():
        assert all(math.isfinite(number) and number > 0 for number in figures(row))
    assert len(kept["rows"]["lstm-8, rank-one"]) == 3  # also against the same factors without members
    assert len(kept["rows"]["transformer-1-32, norm"]) == 2
    assert kept["settings"]["members"] == 2
