"""Running statistics of normalisation layers: where they are, and how to compute them anew, correctly."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parallel import DistributedDataParallel

from .errors import LatePhaseError, LatePhaseValueError

Model = TypeVar("Model", bound=nn.Module)
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def layers_with_statistics(model: nn.Module) -> dict[str, _NormBase]:
    """Every normalisation layer that keeps running statistics, by dotted name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and module.running_mean is not None
    }


def statistics_of(layer: _NormBase) -> dict[str, Tensor]:
    """The statistics of one layer by buffer name."""
    return {name: value for name in _BUFFERS if (value := getattr(layer, name)) is not None}


class _Pooled:
    """Exact mean and variance of all samples that a layer sees, merged batch by batch in float64."""

    def __init__(self, layer: _BatchNorm) -> None:
        assert layer.running_mean is not None
        self.count = 0
        self.mean = torch.zeros_like(layer.running_mean, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)

    def add(self, inputs: Tensor) -> None:
        """Merge one batch of shape (N, C, ...).

        The parallel form of Welford's update (Chan, Golub, LeVeque 1983).
        """
        inputs = inputs.detach()
        if inputs.dtype in (torch.float16, torch.bfloat16):
            inputs = inputs.float()
        axes = [axis for axis in range(inputs.ndim) if axis != 1]
        var, mean = torch.var_mean(inputs, dim=axes, correction=0)
        count = inputs.numel() // inputs.shape[1]
        self.merge(count, mean.double(), var.double() * count)

    def merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Merge a part with its count, mean and sum of squared deviations."""
        total = self.count + count
        if total == 0:
            return
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares + delta.square() * (self.count * count / total)
        self.count = total

    def gather(self, group: dist.ProcessGroup | None) -> None:
        """Merge the parts of all ranks, in rank order, so that all ranks hold the same numbers."""
        mine = torch.cat([self.mean.new_tensor([self.count]), self.mean, self.squares])
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, mine, group=group)
        self.count, self.mean, self.squares = 0, torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        for part in parts:
            channels = len(self.mean)
            self.merge(int(part[0].item()), part[1 : channels + 1], part[channels + 1 :])


def _apply(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, dict):
        return model(**batch)
    if isinstance(batch, (tuple, list)) and batch:
        return model(batch[0])
    raise LatePhaseValueError(
        f"recompute_statistics: do not know how to call the model on a batch of type {type(batch).__name__}; "
        "pass forward=lambda model, batch: ..."
    )


@contextmanager
def _watching(layers: dict[str, _BatchNorm], pools: dict[str, _Pooled]) -> Iterator[None]:
    """Record what every layer sees; the layers normalise by their batches, as in training."""

    def watch(pool: _Pooled, layer: _BatchNorm, inputs: Tensor) -> None:
        pool.add(inputs)
        # One value a channel cannot be normalised by its own variance: such a batch (a last one of one sample) counts
        # in the statistics, and passes through those gathered so far.
        layer.training = inputs.numel() > inputs.shape[1]
        if not layer.training and pool.count > 1:
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.copy_(pool.mean)
            layer.running_var.copy_(pool.squares / (pool.count - 1))

    handles = [
        layer.register_forward_pre_hook(lambda module, args, pool=pools[name]: watch(pool, module, args[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _to_update(model: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorm layers that are not frozen: in a training model, those in eval mode are."""
    return {
        name: layer
        for name, layer in layers_with_statistics(model).items()
        if isinstance(layer, _BatchNorm) and not (model.training and not layer.training)
    }


def _is_shared(model: nn.Module) -> bool:
    return any(getattr(module.__dict__.get("train"), "members_share_the_model", False) for module in model.modules())


def recompute_statistics(
    model: Model,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any] | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Model:
    """Compute the running statistics of every BatchNorm layer anew, as after averaging weights.

    Mean and unbiased variance are those of all samples together: every sample weighs the same, whatever the size of
    its batch. BatchNorm normalises by its batch meanwhile, every other layer is in eval mode (no dropout). Runs under
    the caller's autocast, without gradients; a `DistributedDataParallel` model, or a `process_group`, pools over ranks.

    Args:
        model: the model; only its running statistics change. Layers in eval mode of a training model are frozen
            and keep theirs. Its training flags are as before afterwards.
        batches: batches that the model accepts: a tensor (N, ...), a tuple or list (its first element is the input), or
            a dict (keyword arguments).
        forward: called as `forward(model, batch)` for any other structure.
        process_group: pool the statistics over the ranks of this group.

    Returns:
        The model.

    Raises:
        LatePhaseError: the members of a late phase share the model, so that its statistics are theirs.
        LatePhaseValueError: no batch, fewer than two values a channel, or a batch of unknown structure. On any error,
            one of the model's own included, the old statistics are back.

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
        >>> data = torch.tensor([[0.0, 2.0], [1.0, 4.0], [5.0, 6.0]])
        >>> latephase.recompute_statistics(model, [data[:2], data[2:]])[0].running_mean
        tensor([2., 4.])
    """
    if _is_shared(model):
        raise LatePhaseError(
            "recompute_statistics: the members of a late phase share this model, each with statistics of its own; "
            "collapse() first, or load late.averaged_state_dict() into a plain copy"
        )
    layers = _to_update(model)
    flags = [(module, module.training) for module in model.modules()]
    old = {name: {n: b.clone() for n, b in statistics_of(layer).items()} for name, layer in layers.items()}
    pools = {name: _Pooled(layer) for name, layer in layers.items()}
    seen, done = 0, False
    try:
        for module, _ in flags:
            module.training = False
        with torch.no_grad(), _watching(layers, pools):
            for batch in batches:
                (forward or _apply)(model, batch)
                seen += 1
        if process_group is not None or (isinstance(model, DistributedDataParallel) and dist.is_initialized()):
            for pool in pools.values():
                pool.gather(process_group if process_group is not None else model.process_group)  # type: ignore[arg-type]
        _check(pools, seen)
        done = True
    finally:
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for name, layer in layers.items():
                for buffer, value in statistics_of(layer).items():
                    value.copy_(_fresh(pools[name], buffer, seen) if done else old[name][buffer])
    return model


def _check(pools: dict[str, _Pooled], seen: int) -> None:
    if seen == 0:
        raise LatePhaseValueError("recompute_statistics: no batches; an iterator may be spent, pass a fresh one")
    for name, pool in pools.items():
        if pool.count < 2:
            raise LatePhaseValueError(
                f"recompute_statistics: layer {name!r} saw {pool.count} values a channel; a variance needs at least 2"
            )


def _fresh(pool: _Pooled, buffer: str, seen: int) -> Tensor:
    if buffer == "running_mean":
        return pool.mean
    if buffer == "running_var":
        return pool.squares / (pool.count - 1)
    return torch.tensor(seen)
