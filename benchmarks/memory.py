"""Bytes that a training takes: the profiler's, not the process's."""

from collections.abc import Callable

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import latephase


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Peak of the memory that a piece of work allocates; on a CPU above what stands before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    level = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak


def resident_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of parameters, buffers and optimizer state."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    return sum(t.numel() * t.element_size() for t in tensors)


def parked_bytes(late: latephase.LatePhase) -> int:
    """Bytes of the members' values and optimizer states, beyond those of the one in the model."""
    state = late.state_dict()
    values = sum(t.numel() * t.element_size() for t in state["values"].values())
    states = [
        t for part in state["optimizers"] for member in part["states"] for s in member.values() for t in s.values()
    ]
    return values + sum(t.numel() * t.element_size() for t in states if torch.is_tensor(t))
