"""A plain loop that may be killed at any moment: started again, it goes on and ends in the same bits."""

import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import latephase

MINIBATCHES, START, SIZE = 160, 60, 24


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10)
    )


def save(state: dict, path: Path) -> None:
    """Write under another name, flush, rename: whatever happens, a whole file is there."""
    beside = path.with_suffix(".part")
    with open(beside, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def train(folder: Path, every: int = 5) -> nn.Module:
    """Train, or go on with the training that was begun in a folder.

    Args:
        folder: Where the checkpoint is, and at the end `model.pt`.
        every: Minibatches between two checkpoints.

    Returns:
        The collapsed model.
    """
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, MINIBATCHES)
    late = latephase.LatePhase(model, members=4, weights=["norm", "head"], noise=0.05)
    late.optimizer(optimizer)

    first, checkpoint = 0, folder / "checkpoint.pt"
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        late.load_state_dict(state["late"])  # the phase, all members, the place in the round
        torch.set_rng_state(state["random"])  # dropout
        first = state["minibatch"]

    for minibatch in range(first, MINIBATCHES):
        if minibatch == START:
            late.start()
        choice = torch.randperm(len(images), generator=torch.Generator().manual_seed(minibatch))[:SIZE]
        optimizer.zero_grad()
        F.cross_entropy(model(images[choice]), labels[choice]).backward()
        optimizer.step()
        scheduler.step()
        if (minibatch + 1) % every == 0:
            state = {
                "minibatch": minibatch + 1,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "late": late.state_dict(),
                "random": torch.get_rng_state(),
            }
            save(state, checkpoint)

    model = late.collapse(check=images[:8])
    save(dict(model.state_dict()), folder / "model.pt")
    return model


if __name__ == "__main__":
    trained = train(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/resume-loop"))
    print(f"a plain network of {sum(p.numel() for p in trained.parameters())} weights")
