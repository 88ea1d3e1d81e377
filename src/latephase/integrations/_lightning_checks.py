"""What a Lightning run must be like for late-phase weights to work, and how long it is; nothing imports Lightning."""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..checked_files import check_archive
from ..errors import DamagedFileError, LatePhaseError, LatePhaseValueError
from ..phase import LatePhase

STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy")
NOT_STRATEGIES = {
    "DeepSpeedStrategy": "DeepSpeed steps weights of its own, not those of the module",
    "SingleDeviceXLAStrategy": "XLA's traced graph cannot follow members that take turns",
    "XLAStrategy": "XLA's traced graph cannot follow members that take turns",
    "FSDPStrategy": "FullyShardedDataParallel flattens late-phase and base weights into one tensor",
}


def names_of(thing: Any) -> list[str]:
    """The names of a thing's class and its bases: `lightning.pytorch` and `pytorch_lightning` have each their own."""
    return [base.__name__ for base in type(thing).__mro__]


def check_trainer(trainer: Any, callback: Any) -> None:
    """Refuse strategies, precisions and other callbacks that cannot work.

    Args:
        trainer: the Lightning trainer, before it sets the model up.
        callback: the `LatePhaseCallback`.

    Raises:
        LatePhaseValueError: one of them, by name, with what would work.
    """
    strategy, precision = names_of(trainer.strategy), trainer.precision_plugin
    reason = next((why for name, why in NOT_STRATEGIES.items() if name in strategy), None)
    if reason is not None or not set(STRATEGIES) & set(strategy):
        raise LatePhaseValueError(
            f"strategy: {strategy[0]} does not work with late-phase weights"
            + (f" ({reason})" if reason else "")
            + "; use one device, 'ddp', or ModelParallelStrategy with fully_shard"
        )
    if "PostLocalSGDState" in names_of(getattr(trainer.strategy, "_ddp_comm_state", None)):
        raise LatePhaseValueError(
            "strategy: DDP with post-local SGD averages weights between ranks behind the members' back; use plain "
            "'ddp', or members_over_ranks=True"
        )
    for other in trainer.callbacks:
        name = type(other).__name__
        if other is callback:
            continue
        if "LatePhaseCallback" in names_of(other):
            raise LatePhaseValueError("callbacks: two of LatePhaseCallback; one has all families, in `weights`")
        if any("Averag" in base or "EMA" in base for base in names_of(other)):
            raise LatePhaseValueError(
                f"callbacks: {name} swaps averaged weights into the model, as LatePhaseCallback does; leave it out, "
                "and use LatePhaseCallback(swa=...) or feed your own average from callback.late.averaged_state_dict()"
            )
        if "ModelPruning" in names_of(other):
            raise LatePhaseValueError(
                f"callbacks: {name} replaces parameters in the middle of the run; prune the model that fit() leaves"
            )
    if callback.members_over_ranks and getattr(precision, "scaler", None) is not None:
        raise LatePhaseValueError(
            f"precision: {type(precision).__name__} with a gradient scaler would let one rank skip a step that the "
            "others take; with members_over_ranks=True use precision='bf16-mixed'"
        )


def check_in_place(trainer: Any, module: nn.Module) -> None:
    """Refuse accumulate="in_place" where gradients change between backward and step.

    Args:
        trainer: the Lightning trainer.
        module: the user's LightningModule.

    Raises:
        LatePhaseValueError: clipping, a scaler, or several ranks.
    """
    precision = trainer.precision_plugin
    why = None
    if trainer.gradient_clip_val:
        why = f"gradient_clip_val={trainer.gradient_clip_val}"
    elif any("configure_gradient_clipping" in vars(base) for base in type(module).__mro__[: _own(module)]):
        why = f"{type(module).__name__}.configure_gradient_clipping()"
    elif getattr(precision, "scaler", None) is not None:
        why = f"the gradient scaler of {type(precision).__name__}"
    elif trainer.world_size > 1:
        why = f"{trainer.world_size} ranks"
    if why is not None:
        raise LatePhaseValueError(
            f"accumulate: 'in_place' takes gradients away during backward, before {why} could see them; use 'copy'"
        )


def _own(module: nn.Module) -> int:
    """How many classes of a module's are the user's: those before LightningModule."""
    return names_of(module).index("LightningModule")


def check_optimizers(late: LatePhase, optimizers: list[Any], module: nn.Module) -> None:
    """Refuse optimizers that do not hold or do not show the late-phase weights, and layers that were replaced.

    Args:
        late: the attached phase.
        optimizers: those of the trainer.
        module: the user's LightningModule.

    Raises:
        LatePhaseValueError: that, with names.
    """
    present = set(module.parameters())
    held = {p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    late_weights = dict(zip(late.late_names(), late.late_parameters(), strict=True))
    gone = [name for name, p in late_weights.items() if p not in present]
    if gone:
        raise LatePhaseValueError(
            f"{', '.join(gone[:5])}: replaced while Lightning set the model up, by its precision plugin for one; use "
            "another precision, or other weights"
        )
    missing = [name for name, p in late_weights.items() if p.requires_grad and p not in held]
    if missing:
        raise LatePhaseValueError(
            f"configure_optimizers: no optimizer holds the late-phase weights {', '.join(missing[:5])}"
            + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            + "; give them to one, set requires_grad=False where they are frozen, or choose other `weights`"
        )


def torch_optimizers(trainer: Any) -> list[Optimizer]:
    """The trainer's optimizers, out of Lightning's wrappers."""
    return [getattr(optimizer, "_optimizer", optimizer) for optimizer in trainer.optimizers]


def check_same(now: list[Optimizer], then: list[Optimizer]) -> None:
    """Refuse to go on with other optimizers than those that the members share.

    Args:
        now: the trainer's optimizers.
        then: those at the beginning of fit.

    Raises:
        LatePhaseError: they are others.
    """
    if len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True)):
        raise LatePhaseError(
            f"trainer.optimizers: {', '.join(type(o).__name__ for o in now)} in place of the optimizers that "
            "configure_optimizers returned; members keep their states in these, so leave them, and change learning "
            "rates in optimizer.param_groups"
        )


def length(trainer: Any) -> tuple[int | None, int | None, int | None]:
    """How long a run is, once its data is set up.

    Args:
        trainer: the Lightning trainer.

    Returns:
        Steps of one epoch, steps of the run, and epochs of the run; None for what is not known. Steps are optimizer
        steps; with manual optimization minibatches, unless `max_steps` limits the run.
    """
    batches = trainer.num_training_batches
    epochs = None if trainer.max_epochs in (None, -1) else trainer.max_epochs
    limit = None if trainer.max_steps == -1 else trainer.max_steps
    if not trainer.lightning_module.automatic_optimization and limit is not None:
        return None, limit, epochs
    if not math.isfinite(batches):
        return None, limit, epochs
    schedule = next((c for c in trainer.callbacks if "GradientAccumulationScheduler" in names_of(c)), None)
    if schedule is None:
        per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        total = None if epochs is None else per_epoch * epochs
    else:
        per_epoch = None
        total = None if epochs is None else sum(_steps(batches, schedule, epoch) for epoch in range(epochs))
    totals = [n for n in (limit, total) if n is not None]
    return per_epoch, min(totals, default=None), epochs


def _steps(batches: int, schedule: Any, epoch: int) -> int:
    return math.ceil(batches / schedule.get_accumulate_grad_batches(epoch))


def counts_batches(trainer: Any) -> bool:
    """Whether `length` counts minibatches: with manual optimization a minibatch may be several optimizer steps."""
    return not trainer.lightning_module.automatic_optimization and trainer.max_steps == -1


def check_recomputation(trainer: Any) -> None:
    """Refuse training data that cannot be passed through the model once more at the end.

    Args:
        trainer: the Lightning trainer, once its data is set up.

    Raises:
        LatePhaseValueError: several loaders, or data without an end.
    """
    loaders = trainer.train_dataloader
    if isinstance(loaders, (list, tuple, dict)):
        raise LatePhaseValueError(
            f"statistics: 'recompute' needs one train_dataloader, and this run has {len(loaders)}; use 'fold', or call "
            "latephase.recompute_statistics after fit"
        )
    if not math.isfinite(trainer.num_training_batches):
        raise LatePhaseValueError(
            "statistics: 'recompute' passes the training data once, and its length is not known; set "
            "limit_train_batches, use 'fold', or call latephase.recompute_statistics after fit"
        )


def training_batches(trainer: Any) -> Iterator[Any]:
    """One epoch of training data, on the device and in the precision of the training."""
    for batch in islice(trainer.train_dataloader, int(trainer.num_training_batches)):
        yield trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)


def check_undamaged(path: Any) -> None:
    """Refuse a checkpoint, one local file, in which a bit is not what was written.

    Raises:
        LatePhaseError: an entry of the archive does not have the checksum that torch wrote with it.
    """
    if path is None or not Path(path).is_file():
        return
    try:
        check_archive(Path(path))
    except DamagedFileError as error:
        raise LatePhaseError(f"{error}; give fit(ckpt_path=...) another checkpoint") from error
