"""What figures were measured on, and the file that keeps both."""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import torch

import latephase


def environment(device: torch.device) -> dict[str, object]:
    """Command, commit, device and versions.

    Args:
        device: where the measurement ran.

    Returns:
        Plain values for JSON.
    """
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False)
    cuda = device.type == "cuda"
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.stdout.strip(),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "latephase": latephase.__version__,
    }


def save(file: str | Path, options: argparse.Namespace, measured: object, name: str = "rows") -> None:
    """Write figures with what they were measured on, as JSON.

    Args:
        file: where to.
        options: of the command line; its `device`, where it has one, is the device.
        measured: plain values.
        name: what they are called in the file.
    """
    device = torch.device(getattr(options, "device", "cpu"))
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    content = {"environment": environment(device), "settings": settings, name: measured}
    Path(file).write_text(json.dumps(content, indent=1) + "\n")
