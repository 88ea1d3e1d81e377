"""What a Trainer must be like for late-phase training: checked before its first step."""

from typing import Any

import torch
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from ..arguments import unwrap
from ..errors import LatePhaseError, LatePhaseValueError
from ..phase import LatePhase
from ..statistics import layers_with_statistics
from .beginning import Beginning

UNSUPPORTED = {
    "DEEPSPEED": "DeepSpeed steps copies of the weights that no optimizer hook sees; train with DDP instead, which "
    "torchrun alone turns on",
    "MEGATRON_LM": "Megatron-LM has an optimizer and a loop of its own; train with DDP instead",
    "XLA": "XLA runs its steps later than they are called, and members cannot take turns in between; train on a GPU or "
    "the CPU",
    "FSDP": "the Trainer shards the model behind the callback's back, and keeps the checkpoints in pieces; train with "
    "DDP, or shard with torch's fully_shard in a loop of your own",
}


def check_trainer(
    args: TrainingArguments, model: nn.Module, beginning: Beginning, *, in_place: bool, spread: bool, swa: bool
) -> None:
    """Refuse what cannot work, before anything is attached.

    Args:
        args: the Trainer's.
        model: its model.
        beginning: of the late phase.
        in_place: whether base gradients are gathered during backward.
        spread: whether several ranks share the members.
        swa: whether averages over time are taken.

    Raises:
        LatePhaseError: that, with what would work.
    """
    kind = AcceleratorState().distributed_type.name
    if args.deepspeed or getattr(args, "deepspeed_plugin", None) is not None:
        kind = "DEEPSPEED"
    elif args.fsdp:
        kind = "FSDP"
    elif args.device.type == "xla":
        kind = "XLA"
    if kind in UNSUPPORTED:
        raise LatePhaseError(f"LatePhaseCallback does not work with {kind}: {UNSUPPORTED[kind]}")
    if beginning.automatic and args.logging_strategy == IntervalStrategy.NO:
        raise LatePhaseValueError(
            "start='auto' reads the training losses that the Trainer logs, and logging_strategy='no' logs none; use "
            "logging_strategy='steps' with few logging_steps"
        )
    if in_place and (args.max_grad_norm > 0 or args.fp16):
        raise LatePhaseValueError(
            f"accumulate='in_place' takes gradients away before they can be clipped or unscaled, and max_grad_norm is "
            f"{args.max_grad_norm}, fp16 {args.fp16}; use accumulate='copy', or max_grad_norm=0 and bf16"
        )
    if swa and args.load_best_model_at_end:
        raise LatePhaseValueError(
            "swa and load_best_model_at_end=True ask for two different models at the end; turn one of them off"
        )
    if spread and layers_with_statistics(unwrap(model)[0]) and args.ddp_broadcast_buffers is not False:
        raise LatePhaseValueError(
            "members_over_ranks=True: each rank has the running statistics of its own member, and "
            f"ddp_broadcast_buffers={args.ddp_broadcast_buffers} would overwrite them; set it to False"
        )


def check_attached(late: LatePhase, args: TrainingArguments) -> None:
    """Refuse factors that were added to a model that the Trainer has wrapped already.

    Raises:
        LatePhaseError: that.
    """
    if args.world_size > 1 and any(".parametrizations." in name for name in late.late_names()):
        late.collapse()
        raise LatePhaseError(
            "weights: these add factors to the model, which DistributedDataParallel does not synchronise when they "
            "come after it; give the callback to Trainer(callbacks=[...]), with a model rather than a model_init"
        )


def check_held(late: LatePhase, optimizer: Optimizer) -> None:
    """Refuse an optimizer that would not train the members, long before they come to life.

    Raises:
        LatePhaseError: one that does not hold them, with names, or a schedule-free one.
    """
    if any("train_mode" in group for group in optimizer.param_groups):
        raise LatePhaseError(
            f"{type(optimizer).__name__}: the Trainer lets schedule-free optimizers swap weights in every evaluation, "
            "while the average is in the model; use another optimizer, or a loop of your own"
        )
    held = {p for group in optimizer.param_groups for p in group["params"]}
    weights = zip(late.late_names(), late.late_parameters(), strict=True)
    missing = [name for name, weight in weights if weight.requires_grad and weight not in held]
    if missing:
        raise LatePhaseError(
            f"{type(optimizer).__name__} does not hold {', '.join(missing[:5])}"
            + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            + ", which each member is to train; give the Trainer an optimizer of all weights, or set "
            "requires_grad=False on frozen ones"
        )


class Unsynced:
    """Keeps the Trainer's DistributedDataParallel from averaging over members, when these are spread over the ranks.

    The Trainer wraps the model itself and shows its callbacks what is inside; the wrapper is known in its first forward
    pass.

    Args:
        late: the phase.
    """

    def __init__(self, late: LatePhase) -> None:
        self.late = late
        self.wrapper: DistributedDataParallel | None = None
        self._handle = late.model.register_forward_pre_hook(self._find)

    def _find(self, _: nn.Module, __: Any) -> None:
        active = getattr(DistributedDataParallel, "_active_ddp_module", None)
        if self.late.phase == "late" and active is not None and torch.is_grad_enabled():
            self.wrapper = active
            active.require_backward_grad_sync = active.require_forward_param_sync = False

    def undo(self) -> None:
        """Let the wrapper synchronise again."""
        self._handle.remove()
        if self.wrapper is not None:
            self.wrapper.require_backward_grad_sync = self.wrapper.require_forward_param_sync = True
