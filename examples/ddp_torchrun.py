"""DistributedDataParallel: every process trains the same member on its share of the minibatch.

    torchrun --nproc-per-node 2 examples/ddp_torchrun.py

With `members_over_ranks=True` and no wrapper each process trains a member of its own instead; see docs/distributed.md.
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import latephase

EPOCHS, START = 8, 4


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1,500 digits to train on, and the other 297."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    return TensorDataset(x[:1500], y[:1500]), TensorDataset(x[1500:], y[1500:])


def train() -> float:
    """Train on all processes.

    Returns:
        Accuracy of the averaged model, on the first process's device.
    """
    torch.manual_seed(0)
    train_set, test_set = digits()
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 10))
    wrapped = DistributedDataParallel(model)
    late = latephase.LatePhase(wrapped, members=5, weights=["norm", "head"])
    optimizer = late.optimizer(torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9))
    # The sampler gives every process as many minibatches: where they do not divide, it repeats a few samples.
    sampler = DistributedSampler(train_set, seed=0)
    loader = DataLoader(train_set, batch_size=32 // dist.get_world_size(), sampler=sampler, drop_last=True)
    for epoch in range(EPOCHS):
        if epoch == START:
            late.start()
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            functional.cross_entropy(wrapped(x), y).backward()
            optimizer.step()
    late.collapse()
    x, y = test_set.tensors
    with torch.no_grad():
        return (model.eval()(x).argmax(1) == y).float().mean().item()


def main() -> None:
    """Join the other processes, if there are any, and train."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    accuracy = train()
    if dist.get_rank() == 0:
        print(f"accuracy {accuracy:.3f} on {dist.get_world_size()} processes")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
