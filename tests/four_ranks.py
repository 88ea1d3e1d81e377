"""Four processes, started once for the tests of several files."""

import datetime
import os
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from filelock import FileLock
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.device_mesh import init_device_mesh

import checkpoint_ranks
import data_parallel_ranks
import sharded_ranks
from places import Place

WORLD = 4


def scenarios() -> dict:
    """By name: on how many ranks, and what."""
    return sharded_ranks.scenarios() | data_parallel_ranks.scenarios() | checkpoint_ranks.scenarios()


def work(rank: int, folder: str) -> None:
    """Runs every scenario, and writes down what came of each.

    Those for four come first; of those for fewer, every pair or every rank does its share at the same time.
    """
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    places = {}
    for world in (4, 2, 1):
        mesh = init_device_mesh("cpu", (WORLD // world, world), mesh_dim_names=("teams", "team"))["team"]
        places[world] = Place(rank % world, world, mesh, mesh.get_group(), Path(folder))
    found: dict[str, object] = {}
    for world in (4, 2, 1):
        chosen = [(name, scenario) for name, (wanted, scenario) in scenarios().items() if wanted == world]
        for name, scenario in chosen[rank // world :: WORLD // world]:
            try:
                found[name] = scenario(places[world])
            except (Exception, CheckpointException):  # the test that asks for it shows it
                found[name] = traceback.format_exc()
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


def launch(folder: Path) -> list[dict]:
    """What came of every scenario, rank by rank; several workers of one test run share the four processes."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "four-ranks"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            begun = folder.with_name("four-ranks-begun")
            begun.mkdir()
            torch.multiprocessing.start_processes(work, (str(begun),), nprocs=WORLD, start_method="spawn")
            begun.rename(folder)
        return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


def said_by(outcomes: list[dict], name: str) -> list:
    """What each rank that ran a scenario has to say; an exception of a rank fails the test that asks."""
    said = [(rank, found[name]) for rank, found in enumerate(outcomes) if name in found]
    assert said, f"no rank ran {name!r}"
    for rank, word in said:
        assert not (isinstance(word, str) and word.startswith("Traceback")), f"rank {rank}: {word}"
    return [word for _, word in said]
