"""The commands of `robustness/` in small: a run that is killed, and one whose disk is full, end in the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMANDS = Path(__file__).parents[2] / "robustness"
# Both in one process, which imports once what it forks.
BOTH = """
import sys
sys.path.insert(0, sys.argv[1])
import kill, full_disk
code = kill.main(sys.argv[3].split() + ["--json", sys.argv[2] + "/kill.json"])
sys.exit(code + full_disk.main(sys.argv[4].split() + ["--json", sys.argv[2] + "/full-disk.json"]))
"""
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes that are killed are forked"),
    pytest.mark.timeout(280),
]


def run(folder: Path, kills: str, disks: str) -> dict[str, list[dict[str, Any]]]:
    arguments = [sys.executable, "-c", BOTH, str(COMMANDS), str(folder), kills, disks]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=270, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        "campaigns": json.loads((folder / "kill.json").read_text())["campaigns"],
        "rows": json.loads((folder / "full-disk.json").read_text())["rows"],
    }


def check_campaigns(campaigns: list[dict[str, Any]], kills: int) -> None:
    for row in campaigns:
        assert row["kills"] >= kills, row
        assert row["equal"], row["differences"]
        assert row["starts"] == row["kills"] + row["runs"] + row["starts_without_connection"]
        assert sum(row["operation"].values()) == row["kills"]


def test_killed_or_without_space_a_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    found = run(tmp_path, "--campaigns compare --kills 4", "--sizes 24 --files --names")
    check_campaigns(found["campaigns"], 4)
    if not found["rows"]:
        pytest.skip("the part with a small file system: mounting one needs root")
    (row,) = found["rows"]
    assert (row["file"], row["exit"], row["ok"]) == ("checkpoint.pt", 2, True)


@pytest.mark.slow
def test_all_campaigns_and_every_file(tmp_path: Path) -> None:
    found = run(tmp_path, "--campaigns compare loop ranks --kills 10", "--sizes 8 100 200 --files 0 4 48")
    check_campaigns(found["campaigns"], 10)
    assert {row["processes"] for row in found["campaigns"]} == {1, 2}
    assert all(row["ok"] for row in found["rows"])
    assert {"recipe.yaml", "metrics.jsonl", "checkpoint.pt", "model.safetensors", "result.json", "report.html"} <= {
        row["file"] for row in found["rows"]
    }


@pytest.mark.slow
@pytest.mark.distributed
def test_torchrun_killed(tmp_path: Path) -> None:
    found = run(tmp_path, "--campaigns torchrun --kills 2", "--sizes --files --names recipe.yaml")
    check_campaigns(found["campaigns"], 2)
