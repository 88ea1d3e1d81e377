"""Members over ranks: who trains which member, one sum a round, one exchange a turn."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .errors import LatePhaseError, LatePhaseValueError

State = dict[nn.Parameter, dict[str, Any]]


class Ranks:
    """Where the members train: all on this process (the default), or spread over the ranks of a process group.

    Rank r trains member `turn * world + r`; a round is K / world turns.

    Args:
        members: K.
        spread: whether the members are spread over the ranks.
        group: the process group; None is the default group.
    """

    def __init__(self, members: int, spread: bool, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.spread = spread
        self.world, self.rank = 1, 0
        if spread:
            if not dist.is_initialized():
                raise LatePhaseValueError(
                    "members_over_ranks=True needs torch.distributed; call init_process_group() first"
                )
            self.world, self.rank = dist.get_world_size(group), dist.get_rank(group)
            if members % self.world:
                raise LatePhaseValueError(
                    f"members_over_ranks=True: {members} members cannot be shared evenly by {self.world} ranks; "
                    f"use members={self.world * max(1, round(members / self.world))}"
                )

    def member(self, turn: int) -> int:
        """The member that this rank trains in a turn."""
        return turn * self.world + self.rank

    def sum(self, tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        """Sum over the ranks, in one collective per dtype; None where no rank has a tensor.

        Args:
            tensors: one a parameter; None where this rank has no gradient.
            like: the parameters, for shapes where this rank has none.
        """
        if self.world == 1 or not like:
            return list(tensors)
        device = like[0].device
        present = torch.tensor([tensor is not None for tensor in tensors], dtype=torch.int32, device=device)
        dist.all_reduce(present, dist.ReduceOp.MAX, group=self.group)
        anywhere = present.tolist()
        wanted = [i for i, there in enumerate(anywhere) if there]
        result: list[Tensor | None] = [None] * len(tensors)
        for dtype in _dtypes(like[i] for i in wanted):
            indices = [i for i in wanted if like[i].dtype == dtype]
            parts = [t if (t := tensors[i]) is not None else torch.zeros_like(like[i]) for i in indices]
            flat = torch.cat([part.reshape(-1) for part in parts])
            dist.all_reduce(flat, group=self.group)
            for i, summed in zip(indices, flat.split([part.numel() for part in parts]), strict=True):
                result[i] = summed.view(like[i].shape)
        return result

    def exchange(self, stacks: Sequence[Tensor], turn: int) -> None:
        """Give every rank the rows that the others trained in this turn."""
        if self.world == 1:
            return
        first = turn * self.world
        for dtype in _dtypes(stacks):
            chosen = [stack for stack in stacks if stack.dtype == dtype]
            mine = torch.cat([stack[first + self.rank].reshape(-1) for stack in chosen])
            parts = [torch.empty_like(mine) for _ in range(self.world)]
            dist.all_gather(parts, mine, group=self.group)
            sizes = [stack[0].numel() for stack in chosen]
            for rank, part in enumerate(parts):
                if rank != self.rank:
                    for stack, row in zip(chosen, part.split(sizes), strict=True):
                        stack[first + rank].copy_(row.view(stack.shape[1:]))

    def gather_states(self, states: list[State], parameters: Sequence[nn.Parameter]) -> list[State]:
        """The members' optimizer states, those of other ranks' members included; a collective call."""
        if self.world == 1:
            return states
        gathered: list[State] = [{} for _ in states]
        for turn in range(len(states) // self.world):
            first = turn * self.world
            for parameter in parameters:
                mine = states[first + self.rank].get(parameter, {})
                rows: list[dict[str, Any]] = [dict(mine) for _ in range(self.world)]
                for key, value in mine.items():
                    if isinstance(value, Tensor):
                        parts = [torch.empty_like(value) for _ in range(self.world)]
                        dist.all_gather(parts, value.contiguous(), group=self.group)
                        for row, part in zip(rows, parts, strict=True):
                            row[key] = part
                for rank, row in enumerate(rows):
                    if row:
                        gathered[first + rank][parameter] = row
        return gathered

    def several(self) -> bool:
        """Whether there are other ranks."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size(self.group) > 1

    def share_first(self, tensors: Sequence[Tensor]) -> None:
        """Give every rank the first rank's running statistics, as DDP does before each forward pass."""
        if not self.several():
            return
        group = self.group if self.group is not None else dist.group.WORLD
        first = dist.get_global_rank(group, 0) if group is not None else 0
        for dtype in _dtypes(tensors):
            chosen = [tensor.detach() for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in chosen])
            dist.broadcast(flat, first, group=self.group)
            for tensor, part in zip(chosen, flat.split([tensor.numel() for tensor in chosen]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def check_equal(self, stacks: Sequence[Tensor], names: Sequence[str]) -> None:
        """Assert that all ranks start from the same members' weights.

        Args:
            stacks: the members' weights, (K, ...); not those that are sharded, which no two ranks have.
            names: their names.

        Raises:
            LatePhaseError: a tensor differs between ranks.
        """
        if not self.several() or not stacks:
            return
        sums = torch.stack([_checksum(stack) for stack in stacks])
        low, high = sums.clone(), sums.clone()
        dist.all_reduce(low, dist.ReduceOp.MIN, group=self.group)
        dist.all_reduce(high, dist.ReduceOp.MAX, group=self.group)
        different = [name for name, row in zip(names, (low != high).any(dim=1).tolist(), strict=True) if row]
        if different:
            raise LatePhaseError(
                f"start(): the ranks hold different values of {', '.join(different[:5])}; broadcast the model from one "
                "rank first, and give LatePhase the same seed on all of them"
            )


def _dtypes(tensors: Iterable[Tensor]) -> list[torch.dtype]:
    """The dtypes in order of appearance: the same on all ranks, which a set's order is not."""
    return list(dict.fromkeys(tensor.dtype for tensor in tensors))


def _checksum(stack: Tensor) -> Tensor:
    """Two sums that together notice differing values and differing places, (2,) in float64."""
    flat = stack.detach().reshape(-1)
    flat = (torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat).double()
    weights = torch.arange(1, len(flat) + 1, dtype=torch.float64, device=flat.device) / len(flat)
    return torch.stack([flat.sum(), (flat * weights).sum()])


def refuse_join(*_: object) -> None:
    """Forward pre hook: refuse uneven inputs under `torch.distributed.algorithms.Join`.

    A rank that has run out of inputs takes part in the others' sums of gradients and takes no step, so that its members
    would no longer be the others'.

    Raises:
        LatePhaseError: the model trains in such a context.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    active = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if active is not None and active._join_config.enable:
        raise LatePhaseError(
            "Join: a rank without inputs takes no step, and its members would fall behind the others'; give all ranks "
            "the same number of minibatches, as DistributedSampler and drop_last=True do"
        )


class Unsynced:
    """Keeps a DistributedDataParallel wrapper from averaging gradients and statistics of different members.

    Args:
        wrapper: the wrapper, where the phase was given one.
    """

    def __init__(self, wrapper: DistributedDataParallel | None) -> None:
        self.wrapper = wrapper
        if wrapper is not None:
            self.before = (wrapper.require_backward_grad_sync, wrapper.require_forward_param_sync)
            wrapper.require_backward_grad_sync = wrapper.require_forward_param_sync = False

    def undo(self) -> None:
        """Give the wrapper its own settings back."""
        if self.wrapper is not None:
            self.wrapper.require_backward_grad_sync, self.wrapper.require_forward_param_sync = self.before

    @staticmethod
    def check(*_: object) -> None:
        """Forward pre hook: refuse a wrapper that we were not given and that would mix members.

        Raises:
            LatePhaseError: a DistributedDataParallel around the model synchronises gradients.
        """
        active = getattr(DistributedDataParallel, "_active_ddp_module", None)
        if active is not None and active.require_backward_grad_sync and torch.is_grad_enabled():
            raise LatePhaseError(
                "members_over_ranks=True: DistributedDataParallel averages gradients of different members; give "
                "LatePhase the wrapped model, use ddp.no_sync(), or do not wrap the model at all"
            )
