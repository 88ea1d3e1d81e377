"""LatePhaseCallback: late-phase weights in a Lightning Trainer."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from ..arguments import choice
from ..errors import LatePhaseError
from ..families import Family
from ..phase import LatePhase
from ..sharding import gathered, part_of, placed
from ..statistics import recompute_statistics
from ._lightning_base import TYPES, callback_classes, on_top_of, when_complete
from ._lightning_checks import (
    check_in_place,
    check_optimizers,
    check_recomputation,
    check_same,
    check_trainer,
    check_undamaged,
    counts_batches,
    length,
    torch_optimizers,
    training_batches,
)
from .beginning import Beginning
from .snapshots import Snapshots, check_every


class LatePhaseCallback(callback_classes()[0]):  # type: ignore[misc]
    """Late-phase weights for a LightningModule; nothing else in it changes.

    From `start` on, K members take turns, one optimizer step each. Validation, tests and every checkpoint's
    `state_dict` show the averaged model; the members are in the checkpoint beside it, so that `fit(ckpt_path=...)`
    resumes in the middle of a round. When fit ends, for whatever reason but an exception, the module holds the
    average alone. After an exception it is as it was, and `late` can still be collapsed or saved.

    Args:
        members: K, as the next eight arguments those of `latephase.LatePhase`.
        weights: which weights each member has for itself.
        start: when the members come to life: after so many epochs ("120e"), after so many optimizer steps (6000), after
            a fraction of the run (0.6), or when the training loss says so ("auto"; see `latephase.StartSignal`). With
            manual optimization steps are minibatches, unless the trainer has `max_steps`, and "auto" needs the loss to
            be returned from `training_step`.
        noise: sigma_0.
        base_gradient: gamma.
        optimizer_state: "copy" or "reset".
        seed: of the noise.
        accumulate: "copy" or "in_place".
        members_over_ranks: under DDP, rank r trains member (turn * world + r).
        swa: also average the averaged model over time, from this moment on, given like `start` but for "auto"; the
            mean is what fit leaves behind, if it gets that far. False: no.
        swa_every: optimizer steps from one snapshot to the next; None takes one at the end of every epoch.
        statistics: of normalisation layers at the end: "fold" and "mean" as in `LatePhase.collapse`; "recompute" passes
            the training data once through the final model, with the trainer's precision, over all ranks.
        forward: calls the module on a batch, for "recompute"; None does what `latephase.recompute_statistics` does.

    Attributes:
        late: the `latephase.LatePhase`, from the setup of fit on; None before.

    Raises:
        LatePhaseValueError: an argument that cannot work.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = LatePhaseCallback(members=5, weights=("norm", "head"), start=0.6)
        >>> trainer = Trainer(callbacks=[callback], max_epochs=200, logger=False)
        >>> callback.late is None  # until trainer.fit(module)
        True
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> "LatePhaseCallback":
        """The class on top of the Callback of every Lightning package in use: each accepts none but its own."""
        others = tuple(base for base in callback_classes() if not issubclass(cls, base))
        return super().__new__(on_top_of(cls, others) if others else cls)

    def __init__(
        self,
        members: int = 10,
        weights: str | Family | Iterable[str | Family] = ("norm", "head"),
        start: str | float = 0.6,
        *,
        noise: float = 0.0,
        base_gradient: str | float = "sum",
        optimizer_state: str = "copy",
        seed: int = 0,
        accumulate: str = "copy",
        members_over_ranks: bool = False,
        swa: str | float | bool = False,
        swa_every: int | None = None,
        statistics: str = "fold",
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        choice("statistics", statistics, ("fold", "mean", "recompute"))
        self.options: dict[str, Any] = {
            "members": members,
            "weights": weights,
            "noise": noise,
            "base_gradient": base_gradient,
            "optimizer_state": optimizer_state,
            "seed": seed,
            "accumulate": accumulate,
            "members_over_ranks": members_over_ranks,
        }
        self.members_over_ranks = members_over_ranks
        self.start, self.swa, self.swa_every = start, swa, check_every(swa_every)
        self.statistics, self.forward = statistics, forward
        self.late: LatePhase | None = None
        self._renew()

    def _renew(self) -> None:
        """Forget the last fit."""
        self._beginning = Beginning(self.start)
        self._swa = None if self.swa is False else Beginning(self.swa, name="swa", auto=False)
        self._snapshots = Snapshots()
        self._optimizers: list[Optimizer] = []
        self._saved: Mapping[str, Any] | None = None
        self._loss: Tensor | None = None
        self._lr: float | None = None
        self._steps = 0
        self._fitting = self._training = False
        self._unshadow: Callable[[], None] | None = None

    # Attachment

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work, and arrange the attachment for when the module is complete."""
        self._fitting = False
        if stage != "fit":
            return
        if self.late is not None and self.late.phase != "collapsed":
            raise LatePhaseError(
                "LatePhaseCallback: its phase of an earlier fit, which an exception ended, is still on; call "
                "callback.late.collapse() to train on, or resume from a checkpoint with a new module and callback"
            )
        self._renew()
        self._fitting = True
        check_trainer(trainer, self)
        if self.options["accumulate"] == "in_place":
            check_in_place(trainer, pl_module)
        self._unshadow = when_complete(pl_module, self._attach)

    def _attach(self, module: nn.Module) -> None:
        self._unshadow = None
        self.late = LatePhase(module, **self.options)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Wrap the optimizers."""
        assert self.late is not None
        if self.members_over_ranks and isinstance(trainer.strategy.model, DistributedDataParallel):
            # From the start on its averaging of gradients would mix members over ranks, and is then switched off.
            self.late._life.wrapper = trainer.strategy.model
        self._optimizers = torch_optimizers(trainer)
        for optimizer in self._optimizers:
            self.late.optimizer(optimizer)  # the weights' factors are in it from here on
        check_optimizers(self.late, self._optimizers, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Resume, and fit the beginnings to the run: its data is there now."""
        assert self.late is not None
        if not pl_module.training:
            raise LatePhaseError(
                f"{type(pl_module).__name__} is in eval mode, which means the averaged model; call train() before fit, "
                "and eval() of what should be frozen"
            )
        if self._saved is not None:
            if "late" in self._saved:
                self.late.load_state_dict(self._saved["late"])
            self._beginning.load_state_dict(self._saved["beginning"])
            self._snapshots.load_state_dict(self._saved["snapshots"])
            self._saved = None
        if self.statistics == "recompute":
            check_recomputation(trainer)
        per_epoch, total, epochs = length(trainer)
        for beginning in (self._beginning if self.late.phase == "attached" else None, self._swa):
            if beginning is None:
                continue
            if trainer.fast_dev_run and not isinstance(beginning.start, float):
                # A trial of a few minibatches is not expected to get as far as that.
                beginning.resolve(per_epoch, members=self.late.members)
            else:
                beginning.resolve(per_epoch, total, members=self.late.members, epochs=epochs)
        self._steps = trainer.global_step
        self._training = True

    # Training

    def _done(self, trainer: Any) -> int:
        return trainer.fit_loop.total_batch_idx if counts_batches(trainer) else trainer.global_step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Bring the members to life when it is time."""
        assert self.late is not None
        check_same(torch_optimizers(trainer), self._optimizers)
        # After validation Lightning sets every module's `training` by hand, which no hook of the model sees.
        self.late._life.settle()
        if self.late.phase == "attached" and self._beginning.due(self._done(trainer), epoch=trainer.current_epoch):
            self.late.start()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Note the learning rate, for the signal."""
        if self._beginning.signal is not None:
            self._lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Tell the signal the loss, and take a snapshot when it is time."""
        if self._beginning.signal is not None and self._beginning.signal.started is None:
            self._tell(trainer, pl_module, outputs)
        stepped, self._steps = trainer.global_step != self._steps, trainer.global_step
        if self.swa_every is not None:
            if stepped and trainer.global_step % self.swa_every == 0:
                self._snapshot(trainer)
        elif trainer.is_last_batch:
            # Lightning passes over the end of an epoch when it resumes from a checkpoint of its last minibatch.
            self._snapshot(trainer)

    def _tell(self, trainer: Any, module: Any, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            if module.automatic_optimization:
                return
            raise LatePhaseError(
                f"start: 'auto' reads the loss, and {type(module).__name__}.training_step returned "
                f"{type(loss).__name__}; return the loss, or {{'loss': loss}}"
            )
        # Lightning has divided it by the number of minibatches of a step.
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        if trainer.global_step != self._steps or not module.automatic_optimization:
            # Ranks that saw different losses would start at different times.
            loss = trainer.strategy.reduce(self._loss, reduce_op="mean") if trainer.world_size > 1 else self._loss
            self._beginning.due(self._done(trainer), loss, lr=self._lr)
            self._loss = None

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Take a snapshot of an epoch that was cut short."""
        if self.swa_every is None:
            self._snapshot(trainer)

    def _snapshot(self, trainer: Any) -> None:
        # What the last step began with: "160e" means the ends of epochs from the 161st on.
        before = trainer.fit_loop.total_batch_idx if counts_batches(trainer) else trainer.global_step - 1
        if self._swa is not None and self._swa.due(before, epoch=trainer.current_epoch):
            assert self.late is not None
            state = self.late.averaged_state_dict()
            if self.statistics != "fold" and self.late.phase == "late":
                # What the fold puts into scales and shifts belongs to statistics that will not be there.
                plain = self.late._life.late("swa").members.average(fold=False)
                state.update((name, value.clone()) for name, value in plain.items() if name in state)
            self._snapshots.add(tree_map(gathered, state), trainer.global_step)

    # The end

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the average alone in the module."""
        self._collapse(pl_module)
        if self.statistics == "recompute":
            group = dist.group.WORLD if trainer.world_size > 1 else None
            # No optimizer, scaler or loop of the trainer takes part.
            with trainer.precision_plugin.forward_context(), torch.no_grad():
                recompute_statistics(pl_module, training_batches(trainer), self.forward, group)

    def _collapse(self, module: nn.Module) -> None:
        assert self.late is not None
        self.late.collapse("fold" if self.statistics == "fold" else "mean")
        if self._snapshots.count:
            like, mean = module.state_dict(), self._snapshots.mean()
            own = {name: placed(part_of(value, like[name]), like[name]) for name, value in mean.items()}
            module.load_state_dict(own, strict=getattr(module, "strict_loading", True))

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Collapse the phase of a run that had nothing left to train."""
        if self.late is not None and self.late.phase == "attached":
            if self._saved is not None:
                self._snapshots.load_state_dict(self._saved["snapshots"])
            self._collapse(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no trace of a set-up that failed; a phase that has begun to train stays as it is."""
        if self._unshadow is not None:
            self._unshadow()
        if self.late is not None and self.late.phase != "collapsed" and not self._training:
            self.late.collapse()

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What is beside the model and the optimizers in a checkpoint; with members over ranks a collective call."""
        if self.late is None or not self._fitting:
            return {}
        state = {"beginning": self._beginning.state_dict(), "snapshots": self._snapshots.state_dict()}
        if self.late.phase != "collapsed":
            # Lightning writes what callbacks have on one rank alone, so that it has to be whole there.
            state["late"] = tree_map(gathered, self.late.state_dict())
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts: validation and tests need the averaged weights alone."""
        if self._fitting:
            self._saved = state_dict

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Refuse a damaged checkpoint: what torch and Lightning read is checked by nobody else."""
        if self._fitting:
            check_undamaged(trainer.ckpt_path)

    def __reduce__(self) -> tuple[Any, ...]:
        cls = next(base for base in type(self).__mro__ if base not in TYPES.values())
        return cls.__new__, (cls,), self.__dict__
