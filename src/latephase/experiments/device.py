"""The device a recipe asks for, and the settings of the process that works there."""

from __future__ import annotations

import os

import torch

from latephase.experiments.config import Compute
from latephase.experiments.errors import ExperimentError


def pick_device(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: `auto` for an accelerator if there is one and the CPU otherwise, or a name that PyTorch knows.

    Returns:
        The device.

    Raises:
        ExperimentError: If this machine has no such device.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ExperimentError(f"compute.device = {name} is not to be had here: {reason}") from error
    return device


def describe_device(device: torch.device) -> str:
    """A device in words, for the results.

    Args:
        device: The device.

    Returns:
        Such as `cpu (Intel Xeon, 2 cores)` or `cuda (NVIDIA H200)`.
    """
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type != "cpu":
        return str(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu ({_processor()}, {cores} cores)"


def prepare_process(compute: Compute) -> None:
    """Set this process up: its threads and whether oneDNN is used.

    Args:
        compute: The recipe's section.
    """
    torch.set_num_threads(compute.threads)
    torch.backends.mkldnn.enabled = compute.onednn  # type: ignore[assignment]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else "unknown"
