"""torchrun: the processes that were started together, and the notes that they leave for each other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from latephase.experiments.errors import ExperimentError

_LOOK_AGAIN = timedelta(seconds=5)


def is_launched() -> bool:
    """Whether this process is one of several that torchrun, or what sets the same variables, has started."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


class Team:
    """The processes of one launch.

    They share a store of short notes, which needs no process group: the trainings of a comparison have nothing to do
    with each other, and a late phase would take a group for ranks that train the same member.

    Attributes:
        rank: This process, from 0.
        world: How many there are.

    Raises:
        ExperimentError: If the variables of torchrun are not all set.
    """

    def __init__(self) -> None:
        try:
            self._store, self.rank, self.world = next(rendezvous("env://"))
        except ValueError as error:
            raise ExperimentError(f"{error}; start the processes with torchrun") from error
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is not None:
            place = int(os.environ.get("LOCAL_RANK", self.rank))
            torch.accelerator.set_device_index(place % torch.accelerator.device_count())
        self.meet("here")

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes what belongs to all."""
        return self.rank == 0

    def agree(self, key: str, decide: Callable[[], Any]) -> Any:
        """Let the first process decide for all, and do what is to be done once before all go on.

        Args:
            key: A name, used once.
            decide: Called in the first process alone.

        Returns:
            What it returned there, in every process; plain values.

        Raises:
            ExperimentError: What it raised there, in every process.
        """
        if self.leads:
            try:
                answer = {"answer": decide()}
            except ExperimentError as error:
                self._store.set(key, json.dumps({"error": str(error)}))
                self.meet(key)
                raise
            self._store.set(key, json.dumps(answer))
            return answer["answer"]
        self.wait(key)
        said = json.loads(self._store.get(key))
        if "error" in said:
            self.meet(key)
            raise ExperimentError(said["error"])
        return said["answer"]

    def meet(self, key: str) -> None:
        """Let the first process wait for the others, which need its store no more: without torchrun it keeps it.

        Args:
            key: A name, used once.
        """
        if not self.leads:
            self.tell(f"{key}-{self.rank}")
            return
        for rank in range(1, self.world):
            self.wait(f"{key}-{rank}")

    def take(self, key: str) -> int:
        """The next number of a count that all share, from 0."""
        return int(self._store.add(key, 1)) - 1

    def tell(self, key: str) -> None:
        """Leave a note that something is done."""
        self._store.set(key, "{}")

    def fail(self, message: str) -> None:
        """Let the others know that this process cannot go on."""
        self._store.set("failed", f"process {self.rank}: {message}")

    def wait(self, key: str) -> None:
        """Wait for a note, however long that takes.

        Args:
            key: Its name.

        Raises:
            ExperimentError: If another process failed meanwhile.
        """
        while True:
            try:
                self._store.wait([key], _LOOK_AGAIN)
            except dist.DistStoreError:
                if self._store.check(["failed"]):
                    raise ExperimentError(self._store.get("failed").decode()) from None
            else:
                return

    def start_group(self, device_type: str) -> None:
        """Let the processes sum tensors.

        Args:
            device_type: Where these are.
        """
        backend = "nccl" if device_type == "cuda" else "gloo"
        store = dist.PrefixStore("group", self._store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world)

    def end_group(self) -> None:
        """Undo `start_group`."""
        dist.destroy_process_group()
