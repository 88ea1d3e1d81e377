"""Weights that FSDP2 has sharded: of a DTensor a rank holds a part, and parks the members' values of that part."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import LatePhaseError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Any) -> "TypeGuard[DTensor]":
    """Whether a tensor is a DTensor. Where nobody has imported these there are none, and the import takes its time."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is on this rank, in the same memory; of a plain tensor all of it."""
    if not is_sharded(tensor):
        return tensor
    part: Any = tensor.detach()
    with torch.no_grad():
        here: Tensor = part.to_local()
    return here


def placed(part: Tensor, like: Tensor, stacked: int = 0) -> Tensor:
    """The way back from `local`.

    Args:
        part: this rank's part, (*stacked, ...).
        like: a tensor that is sharded as the whole is to be, or a plain one.
        stacked: number of dimensions that come before those of `like`; they are not sharded.

    Returns:
        A DTensor over the same memory; the part itself where `like` is a plain tensor.
    """
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    shape = (*part.shape[:stacked], *like.shape)
    stride = torch.empty(shape, device="meta").stride()
    whole: Tensor = DTensor.from_local(
        part, like.device_mesh, _moved(like, stacked), run_check=False, shape=torch.Size(shape), stride=stride
    )
    return whole


def part_of(whole: Tensor, like: Tensor, stacked: int = 0) -> Tensor:
    """This rank's part of a tensor.

    Args:
        whole: (*stacked, ...), plain and the same on all ranks, or sharded in whatever way.
        like: a tensor that is sharded in the way that counts, or a plain one.
        stacked: number of dimensions that come before those of `like`.

    Returns:
        The part that `local` would give if `whole` were sharded like `like`. Communicates where `whole` is sharded in
        another way.
    """
    if not is_sharded(like):
        return gathered(whole)
    placements = _moved(like, stacked)
    if is_sharded(whole):
        return local(whole.redistribute(like.device_mesh, placements))
    from torch.distributed.tensor import distribute_tensor

    return local(distribute_tensor(whole.detach(), like.device_mesh, placements, src_data_rank=None))


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor on every rank; communicates where it is sharded."""
    if not is_sharded(tensor):
        return tensor
    parts: Any = tensor.detach()
    whole: Tensor = parts.full_tensor()
    return whole


def group_of(tensors: Iterable[Tensor]) -> dist.ProcessGroup | None:
    """The ranks that hold the parts of sharded tensors; None, which is all ranks, where they are in a grid."""
    for tensor in tensors:
        if is_sharded(tensor):
            return tensor.device_mesh.get_group() if tensor.device_mesh.ndim == 1 else None
    return None


def check_sharding(model: nn.Module, spread: bool, factors: bool, in_place: bool) -> None:
    """Refuse what does not go together with FSDP2.

    Args:
        model: the user's model, sharded or not.
        spread: whether the members are spread over the ranks.
        factors: whether a family adds factors.
        in_place: whether gradients are gathered during backward.

    Raises:
        LatePhaseError: one of these, where a weight is sharded.
    """
    name = next((name for name, parameter in model.named_parameters() if is_sharded(parameter)), None)
    if name is None:
        return
    if spread:
        raise LatePhaseError(
            f"members_over_ranks=True: FSDP2 shards {name!r}, and all ranks put their parts together to compute with; "
            "leave members_over_ranks out (every rank trains the member of the turn), or use DistributedDataParallel "
            "or no wrapper"
        )
    if factors:
        raise LatePhaseError(
            f"weights: FSDP2 shards {name!r}, and keeps its own account of which module has which weight; factors "
            "(rank-one, lora, hypernetwork) move a weight to another module and, at collapse(), back. Use "
            "DistributedDataParallel, or weights that the model has itself (norm, head, full, Parameters(...)); "
            "adapters that are part of the model are such, for example Parameters('*lora_*')"
        )
    if in_place:
        raise LatePhaseError(
            f"accumulate='in_place': FSDP2 shards {name!r} and sums gradients over the ranks after backward; use "
            "accumulate='copy'"
        )


def sharders(model: nn.Module) -> list[Any]:
    """The modules of a model that `fully_shard` manages."""
    module = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return [] if module is None else [part for part in model.modules() if isinstance(part, module)]


def reshard(modules: Iterable[Any]) -> None:
    """Put the sharded parameters back into their places.

    FSDP2 leaves whole ones in the outermost module after a forward pass without backward, and takes no notice if the
    sharded ones, which are what optimizers and members write to, change meanwhile.
    """
    for module in modules:
        module.reshard()


def _moved(like: "DTensor", stacked: int) -> list[Any]:
    """The placements of a tensor with further dimensions in front."""
    from torch.distributed.tensor import Shard

    def move(placement: Any) -> Any:
        if isinstance(placement, Shard):
            return Shard(placement.dim + stacked)
        if hasattr(placement, "split_factor"):  # sharded on top of tensor parallelism
            return type(placement)(placement.dim + stacked, split_factor=placement.split_factor)
        return placement

    return [move(placement) for placement in like.placements]
