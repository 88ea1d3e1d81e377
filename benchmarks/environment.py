"""What figures were measured on."""

import platform
import subprocess
import sys

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
