"""What results come from: the commit and the versions that made them."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import latephase


def versions() -> dict[str, str]:
    """The versions that numbers depend on.

    Returns:
        Names and versions.
    """
    packages = ("torch", "torchvision", "numpy")
    return {
        "latephase": latephase.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def commit() -> str | None:
    """The commit of the working tree that this package runs from, and whether the tree was changed.

    Returns:
        Such as `0123456789ab-dirty`; None where the package does not run from a working tree.
    """
    where = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=where,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
