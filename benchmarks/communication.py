"""Bytes that a round sends between processes: members over ranks against DistributedDataParallel on the same samples.

Starts 2 and 4 gloo processes, counts what is handed to collectives on one of them, and prints it beside the formula of
docs/scale.md.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import latephase
from environment import save


class Counter:
    """Sums up the bytes that a process hands to collectives, and what a ring would send of them."""

    def __init__(self) -> None:
        self.calls, self.payload, self.sent = 0, 0, 0.0

    def add(self, tensor: torch.Tensor, share: float) -> None:
        """Count one call."""
        self.calls += 1
        self.payload += tensor.nbytes
        self.sent += share * tensor.nbytes

    def watch_collectives(self) -> None:
        """Count the collectives that are called through torch.distributed."""
        world, reduce, gather = dist.get_world_size(), dist.all_reduce, dist.all_gather

        def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.add(tensor, 2 * (world - 1) / world)
            return reduce(tensor, *args, **kwargs)

        def all_gather(parts: list[torch.Tensor], tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.add(tensor, world - 1)
            return gather(parts, tensor, *args, **kwargs)

        dist.all_reduce, dist.all_gather = all_reduce, all_gather

    def watch_buckets(self, model: DistributedDataParallel) -> None:
        """Count the buckets of gradients that DistributedDataParallel sums; its reducer calls no Python function."""

        def hook(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            # Counted by the patched all_reduce.
            dist.all_reduce(bucket.buffer())
            future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            future.set_result(bucket.buffer().div_(dist.get_world_size()))
            return future

        model.register_comm_hook(None, hook)


def network() -> nn.Module:
    """Three convolutions with BatchNorm and a head."""
    torch.manual_seed(0)
    widths = ((3, 16), (16, 32), (32, 64))
    blocks = [
        part for a, b in widths for part in (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One minibatch."""
    optimizer.zero_grad()
    functional.cross_entropy(model(torch.randn(2, 3, 8, 8)), torch.randint(10, (2,))).backward()
    optimizer.step()


def work(rank: int, world: int, members: int, folder: str) -> None:
    """A round of members over ranks, and as many minibatches under DistributedDataParallel."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found = {}
    for name in ("members over ranks", "DistributedDataParallel"):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        counter = Counter()
        if name == "members over ranks":
            late = latephase.LatePhase(model, members=members, members_over_ranks=True)
            late.optimizer(optimizer)
            late.start()
            own = late.state_dict()["values"].values()
            sizes = {
                "base": sum(p.nbytes for p in late.base_parameters()),
                "tensors": len(late.base_parameters()),
                "member": sum(stack[0].nbytes for stack in own),
                "kinds": len({stack.dtype for stack in own}),
            }
        else:
            wrapped = DistributedDataParallel(model)
            counter.watch_buckets(wrapped)
            model = wrapped
        before = dist.all_reduce, dist.all_gather
        counter.watch_collectives()
        for _ in range(members // world):
            step(model, optimizer)
        dist.all_reduce, dist.all_gather = before
        found[name] = vars(counter)
    whole = sum(p.nbytes for p in model.parameters())
    turns, ring = members // world, 2 * (world - 1) / world
    late_sent = ring * (sizes["base"] + 4 * sizes["tensors"]) + turns * (world - 1) * sizes["member"]
    formulae = {"members over ranks": late_sent, "DistributedDataParallel": turns * ring * whole}
    for name, sent in formulae.items():
        found[name]["sent by the formula"] = sent
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps({"sizes": sizes, "parameters": whole, "rounds": found}))
    dist.destroy_process_group()


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--worlds", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    rows = {}
    for world in options.worlds:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.start_processes(work, (world, options.members, folder), world, start_method="spawn")
            rows[world] = json.loads(Path(folder, "found.json").read_text())
        print(f"{world} processes, K = {options.members}, a round of {options.members // world} steps:")
        for name, row in rows[world]["rounds"].items():
            print(
                f"  {name}: {row['calls']} collectives, {row['payload']:,} bytes handed over; "
                f"a ring sends {row['sent']:,.0f} (formula: {row['sent by the formula']:,.0f})"
            )
    if options.json:
        save(options.json, options, rows, "worlds")


if __name__ == "__main__":
    main()
