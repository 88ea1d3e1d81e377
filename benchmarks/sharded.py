"""What a rank holds under FSDP2: bytes of weights, members, optimizer states and of the round's sum of gradients.

Starts 1, 2 and 4 gloo processes that train a transformer for a round and a half, adds up what each of them holds, and
prints the largest beside the formulae of docs/scale.md.
"""

import argparse
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional

import latephase
from environment import save

TOKENS = 64


def network(width: int, depth: int) -> nn.Module:
    """A pre-norm transformer over tokens."""
    torch.manual_seed(0)
    layers = [
        nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        for _ in range(depth)
    ]
    return nn.Sequential(nn.Embedding(TOKENS, width), *layers, nn.LayerNorm(width), nn.Linear(width, TOKENS))


def held(tree: Any) -> Iterator[Tensor]:
    """The tensors of nested dicts and lists, of each the part that is on this rank."""
    if isinstance(tree, Tensor):
        yield tree.to_local() if isinstance(tree, DTensor) else tree
    elif isinstance(tree, (dict, list)):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from held(branch)


def size(tree: Any) -> int:
    """Bytes on this rank; numbers that only count do not."""
    return sum(tensor.nbytes for tensor in held(tree) if tensor.ndim)


def work(rank: int, world: int, options: argparse.Namespace, folder: str) -> None:
    """Train a round and a half, and add up."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    rows = {}
    for family in options.weights:
        model = network(options.width, options.depth)
        late = latephase.LatePhase(model, options.members, family)
        for layer in list(model)[1:-2]:
            fully_shard(layer)
        fully_shard(model)
        optimizer = late.optimizer(torch.optim.AdamW(model.parameters(), lr=1e-3))
        late.start()
        for step in range(options.members + options.members // 2):
            x = torch.randint(TOKENS, (4, 16), generator=torch.Generator().manual_seed(step * world + rank))
            optimizer.zero_grad()
            functional.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()
            optimizer.step()
        state = late.state_dict()
        (steps,) = state["optimizers"]
        base = {id(parameter) for parameter in late.base_parameters()}
        rows[family] = {
            "weights": size(list(model.parameters())),
            "optimizer, base weights": size([dict(optimizer.state[p]) for p in optimizer.state if id(p) in base]),
            "parked members": size(state["values"]),
            "optimizer, members": size(steps["states"]),
            "sum of base gradients": size(steps["sums"]),
        }
    torch.save(rows, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def formulae(model: nn.Module, family: str, members: int) -> dict[str, int]:
    """The same for all ranks together; float32, AdamW."""
    late = latephase.LatePhase(model, members, family).late_parameters()
    own = sum(parameter.nbytes for parameter in late)
    base = sum(parameter.nbytes for parameter in model.parameters()) - own
    return {
        "weights": base + own,
        "optimizer, base weights": 2 * base,
        "parked members": members * own,
        "optimizer, members": 2 * members * own,
        "sum of base gradients": base,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--worlds", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--weights", nargs="*", default=["norm", "full"])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    found: dict[int, dict[str, dict[str, dict[str, int]]]] = {}
    for world in options.worlds:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.start_processes(work, (world, options, folder), world, start_method="spawn")
            ranks = [torch.load(f"{folder}/rank{rank}.pt", weights_only=True) for rank in range(world)]
        found[world] = {}
        print(f"{world} ranks, K = {options.members}, bytes on the rank that holds most:")
        for family in options.weights:
            whole = formulae(network(options.width, options.depth), family, options.members)
            rows = {}
            for what, total in whole.items():
                rows[what] = {"measured": max(rank[family][what] for rank in ranks), "formula": total // world}
                print(f"  {family}, {what}: {rows[what]['measured']:,} (1/{world} of all: {total // world:,})")
            found[world][family] = rows
    if options.json:
        save(options.json, options, found, "worlds")


if __name__ == "__main__":
    main()
