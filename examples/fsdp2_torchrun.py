"""FSDP2: weights, gradients, optimizer states and members are sharded; checkpoints fit any number of processes.

    torchrun --nproc-per-node 2 examples/fsdp2_torchrun.py

Halfway through the late phase it saves with torch.distributed.checkpoint, throws everything away and resumes.
"""

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

import latephase
from latephase.integrations.distributed_checkpoint import PhaseState

STEPS, START, SAVE, BATCH = 60, 20, 42, 32


def build() -> tuple[nn.Module, torch.optim.Optimizer, latephase.LatePhase]:
    """A sharded transformer, its optimizer and the phase."""
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)]
    model = nn.Sequential(nn.Embedding(16, 32), *layers, nn.LayerNorm(32), nn.Linear(32, 16))
    for layer in layers:
        fully_shard(layer)
    fully_shard(model)
    late = latephase.LatePhase(model, members=4, weights="norm")
    optimizer = late.optimizer(torch.optim.AdamW(model.parameters(), lr=3e-3))
    return model, optimizer, late


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This process's share of a minibatch: sequences to be copied with every token one higher."""
    tokens = torch.randint(16, (BATCH, 12), generator=torch.Generator().manual_seed(step))
    mine = tokens.chunk(dist.get_world_size())[dist.get_rank()]
    return mine, (mine + 1) % 16


def run(parts: tuple[nn.Module, torch.optim.Optimizer, latephase.LatePhase], first: int, last: int) -> float:
    """The loop.

    Returns:
        The last loss.
    """
    model, optimizer, late = parts
    loss = torch.zeros(())
    for step in range(first, last):
        if step == START:
            late.start()
        x, y = batch(step)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
    return loss.item()


def train(folder: Path) -> float:
    """Train with an interruption.

    Args:
        folder: For the checkpoint; all processes see it.

    Returns:
        The last loss of this process.
    """
    model, optimizer, late = build()
    run((model, optimizer, late), 0, SAVE)
    state = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "late": PhaseState(late),
    }
    dcp.save(state, checkpoint_id=folder)

    model, optimizer, late = build()
    state = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "late": PhaseState(late, folder),
    }
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    loss = run((model, optimizer, late), SAVE, STEPS)

    late.collapse()
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    assert all(tensor.isfinite().all() for tensor in whole.values())
    return loss


def main() -> None:
    """Join the other processes, if there are any, and train."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    folder: list[str | None] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    loss = train(Path(str(folder[0])))
    if dist.get_rank() == 0:
        print(f"loss {loss:.3f} on {dist.get_world_size()} processes")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
