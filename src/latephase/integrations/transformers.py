"""LatePhaseCallback: late-phase weights in the Hugging Face Trainer."""

from collections.abc import Iterable
from typing import Any, Literal
from weakref import WeakSet

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from ..arguments import choice, torch_optimizer, unwrap
from ..errors import LatePhaseError
from ..families import Family
from ..phase import LatePhase
from ..statistics import layers_with_statistics, recompute_statistics
from . import _transformers_setup as setup
from ._transformers_checkpoint import find_members, load_members, save_members, written_folder
from .beginning import Beginning
from .snapshots import Snapshots, check_every

_CALLBACKS: "WeakSet[LatePhaseCallback]" = WeakSet()


class LatePhaseCallback(TrainerCallback):
    """Late-phase weights in `transformers.Trainer`, with no other change to a script.

    It attaches when the Trainer is made, hooks the optimizer that the Trainer makes, starts the members, and collapses
    them when training ends. Evaluations, saved models and checkpoints are those of the averaged model; the members go
    beside each checkpoint, into a file `latephase.pt`, from which `resume_from_checkpoint` goes on, in the middle of a
    round too. `load_best_model_at_end` loads the best of the averaged models.

    Args:
        members: K; see `latephase.LatePhase`.
        weights: which weights each member has for itself.
        start: when the members come to life: "120e" (after 120 epochs), a number of optimizer steps, a fraction of the
            run's, or "auto": when the logged training losses say so (see `latephase.StartSignal`), at the pace of
            `logging_steps`.
        swa: from when on the averaged models are averaged over time too (SWA), said like `start`; the model at the end
            is that mean, with running statistics recomputed on the training data. False leaves it out.
        swa_every: optimizer steps from one of them to the next; None takes the ends of epochs.
        statistics: of the collapse, "fold" or "mean".
        resume_from: the checkpoint folder from which the Trainer resumes, needed where that is neither
            `args.resume_from_checkpoint` nor in `args.output_dir`.
        noise: sigma_0.
        base_gradient: gamma.
        optimizer_state: "copy" or "reset".
        seed: of the noise.
        accumulate: "copy", or "in_place" where nothing clips or scales gradients.
        members_over_ranks: with several processes, each rank trains other members.

    Attributes:
        late: the phase; None until a Trainer has the callback. After an exception in training, or in a notebook after
            an interrupt, `callback.late.collapse()` leaves the averaged model.

    Raises:
        LatePhaseValueError: an argument that cannot work; those that depend on the model and the Trainer's arguments
            are found when the Trainer is made, or when it begins to train.

    Example:
        >>> from transformers import Trainer, TrainingArguments
        >>> from latephase.integrations.transformers import LatePhaseCallback
        >>> callback = LatePhaseCallback(members=10, weights=["norm", "head"], start=0.6)
        >>> # Trainer(model=model, args=TrainingArguments(...), train_dataset=data, callbacks=[callback]).train()
    """

    def __init__(
        self,
        members: int = 10,
        weights: str | Family | Iterable[str | Family] = ("norm", "head"),
        start: str | float = 0.6,
        *,
        swa: str | float | Literal[False] = False,
        swa_every: int | None = None,
        statistics: str = "fold",
        resume_from: str | None = None,
        noise: float = 0.0,
        base_gradient: str | float = "sum",
        optimizer_state: str = "copy",
        seed: int = 0,
        accumulate: str = "copy",
        members_over_ranks: bool = False,
    ) -> None:
        self.late: LatePhase | None = None
        self.beginning = Beginning(start)
        self._swa = None if swa is False else Beginning(swa, name="swa", auto=False)
        self._swa_every = check_every(swa_every)
        self._snapshots = Snapshots()
        self._arguments: dict[str, Any] = {
            "members": members,
            "weights": weights,
            "noise": noise,
            "base_gradient": base_gradient,
            "optimizer_state": optimizer_state,
            "seed": seed,
            "accumulate": accumulate,
            "members_over_ranks": members_over_ranks,
        }
        self._statistics = choice("statistics", statistics, ("fold", "mean"))
        self._resume_from = resume_from
        self._control: TrainerControl | None = None
        self._optimizer: Optimizer | None = None
        self._counter: Any = None
        self._steps = 0
        self._seen = 0
        self._unsynced: setup.Unsynced | None = None
        self._logged = 0

    # Before training

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Attach before the Trainer wraps the model and makes its optimizer."""
        if any(other._control is control for other in _CALLBACKS if other is not self):
            raise LatePhaseError("two LatePhaseCallbacks in one Trainer: the model's members belong to one; remove one")
        self._control = control
        _CALLBACKS.add(self)
        assert model is not None
        self._attach(model, args)
        if optimizer is not None:
            self._hook(optimizer)

    def _attach(self, model: nn.Module, args: TrainingArguments) -> LatePhase:
        in_place, spread = self._arguments["accumulate"] == "in_place", self._arguments["members_over_ranks"]
        setup.check_trainer(args, model, self.beginning, in_place=in_place, spread=spread, swa=self._swa is not None)
        self.late = late = LatePhase(model, **self._arguments)
        self._optimizer, self._snapshots = None, Snapshots()
        if self._unsynced is not None:
            self._unsynced.undo()
        self._unsynced = setup.Unsynced(late) if spread and args.world_size > 1 else None
        return late

    def _hook(self, optimizer: Optimizer) -> None:
        assert self.late is not None
        inner = torch_optimizer(optimizer, self.late.model)
        if self._optimizer is not None and self._optimizer is not inner:
            raise LatePhaseError(
                f"the Trainer was given {type(self._optimizer).__name__} as its optimizer and trains with another "
                f"{type(inner).__name__}; give it the optimizer that it trains with, or none"
            )
        self.late.optimizer(inner)
        self._optimizer = inner

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Hook the optimizer, fit `start` to the run, and take up a run that is resumed."""
        assert model is not None
        late = self.late
        if late is None or late.phase == "collapsed" or late.model is not unwrap(model)[0]:
            late = self._attach(model, args)
            setup.check_attached(late, args)
        assert optimizer is not None
        self._hook(optimizer)
        assert self._optimizer is not None
        setup.check_held(late, self._optimizer)
        self._count_steps()
        per_epoch = None
        if has_length(train_dataloader):
            per_epoch = max(1, -(-len(train_dataloader) // args.gradient_accumulation_steps))
        epochs = None if args.max_steps > 0 else state.num_train_epochs
        for beginning in filter(None, (self.beginning, self._swa)):
            beginning.resolve(per_epoch, state.max_steps, members=late.members, epochs=epochs)
        self._logged = state.global_step
        if state.global_step > 0:
            self._resume(late, args, state)

    def _count_steps(self) -> None:
        # Should anything give the Trainer another optimizer, its steps would not be turns, and nothing would say so.
        def count(*_: Any) -> None:
            self._steps += 1

        assert self._optimizer is not None
        if self._counter is not None:
            self._counter.remove()
        self._counter = self._optimizer.register_step_post_hook(count)
        self._seen = self._steps

    def _resume(self, late: LatePhase, args: TrainingArguments, state: TrainerState) -> None:
        path = find_members(self._resume_from, args, state)
        if path is not None:
            beginning, snapshots = load_members(path, late)
            self.beginning.load_state_dict(beginning)
            if self._swa is not None and snapshots:
                self._snapshots.load_state_dict(snapshots)
        elif self.beginning.step is not None and self.beginning.step < state.global_step:
            raise LatePhaseError(
                f"resumed at step {state.global_step}, without the members' file latephase.pt of that checkpoint, "
                f"though they came to life at step {self.beginning.step}; say where it is with "
                f"LatePhaseCallback(resume_from=...), or begin the late phase now with start={state.global_step}"
            )

    # Training

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the members when it is time."""
        late = self.late
        if late is None or late.phase != "attached":
            return
        if self.beginning.due(state.global_step, epoch=int(state.epoch or 0)):
            late.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Give a start that is left to the losses what is logged, the mean over ranks and minibatches."""
        if self.beginning.automatic and logs and "loss" in logs:
            # The signal counts minibatches, and a logged loss is the mean of several.
            for step in range(self._logged, state.global_step):
                self.beginning.due(step, logs["loss"], lr=logs.get("learning_rate"))
            self._logged = state.global_step

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Optimizer | None = None,
        **_: Any,
    ) -> None:
        """See that the step was one of the optimizer that has the hooks; take a snapshot when it is time."""
        if self._steps == self._seen and not getattr(optimizer, "step_was_skipped", False):
            raise LatePhaseError(
                f"the Trainer's step {state.global_step} was not one of {type(self._optimizer).__name__}, with which "
                "it began to train; replace an optimizer before trainer.train(), not during it"
            )
        self._seen = self._steps
        # Not at the event of an epoch's end: a checkpoint of the last step is saved before that.
        whole = float(state.epoch or 0).is_integer()
        if self._swa is not None and self.late is not None and state.global_step > 0:
            now = whole if self._swa_every is None else state.global_step % self._swa_every == 0
            if now and self._swa.due(state.global_step, epoch=int(state.epoch or 0)):
                self._snapshots.add(self.late.averaged_state_dict(), state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put the members beside the checkpoint."""
        if self.late is not None and self.late.phase != "collapsed" and not args.save_only_model:
            state_dict = self.late.state_dict()  # a collective call, where ranks share the members
            if args.should_save:
                save_members(
                    written_folder(args, state),
                    state_dict,
                    self.beginning.state_dict(),
                    self._snapshots.state_dict() if self._swa is not None else {},
                )

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Leave the averaged model in the Trainer."""
        if self._counter is not None:
            self._counter.remove()
            self._counter = None
        if self.late is not None and self.late.phase != "collapsed":
            self.late.collapse(self._statistics)
            if self._unsynced is not None:
                self._unsynced.undo()
                self._unsynced = None
            if self._snapshots.count:
                self.late.model.load_state_dict(self._snapshots.mean())
                if layers_with_statistics(self.late.model):
                    group = dist.group.WORLD if args.world_size > 1 else None
                    recompute_statistics(self.late.model, train_dataloader, process_group=group)
