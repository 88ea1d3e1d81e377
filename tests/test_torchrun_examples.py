"""The examples of torchrun: alone in the fast suite, as torchrun starts them in the slow one."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SAID = {"ddp_torchrun.py": "accuracy 0.9", "fsdp2_torchrun.py": "loss 0."}


@pytest.mark.parametrize("name", SAID)
def test_on_one_process(capsys, monkeypatch, name: str) -> None:
    for variable in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    said = capsys.readouterr().out
    assert SAID[name] in said
    assert "on 1 processes" in said


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", SAID)
def test_on_two_processes(name: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, str(EXAMPLES / name)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert SAID[name] in done.stdout
    assert "on 2 processes" in done.stdout
