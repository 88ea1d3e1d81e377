"""Every code block of the README runs, or names commands that exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from latephase.cli import main

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    line.removeprefix("$ ") for language, code in BLOCKS if language == "console" for line in code.splitlines() if line
]


def test_every_block_is_of_a_kind_that_is_tested():
    assert {language for language, _ in BLOCKS} <= {"python", "console"}
    assert PYTHON
    assert {"make demo", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_runs(code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command):
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("latephase ")])
def test_commands_parse(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, verb, *arguments = shlex.split(command)
    # `--help` after the arguments: they are read, and an unknown one is refused, but nothing is trained.
    try:
        code = main([verb, *arguments, "--help"])
    except SystemExit as end:
        code = end.code or 0
    assert code == 0, capsys.readouterr().err
