"""The training loop: one trajectory of weights, which can be saved, forked and resumed at any minibatch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latephase.experiments.config import Recipe
from latephase.experiments.data import Split
from latephase.experiments.data_parallel import DataParallel
from latephase.experiments.device import pick_device
from latephase.experiments.errors import ExperimentError
from latephase.experiments.methods.method import Method, Reading
from latephase.experiments.optimizers import make_optimizer
from latephase.experiments.predictor import Predictor
from latephase.experiments.schedule import learning_rate, steps_at
from latephase.experiments.tasks import make_task
from latephase.experiments.text import Corpus


class Trajectory:
    """A model in training: optimizer, minibatches, a method, and the models read off on the way.

    Until the method's start this is plain training; two trajectories of one recipe and seed are then equal bit for
    bit, and one can take over the other's state. (The loop is plain PyTorch. Lightning's Fabric was measured here:
    8% of a step of the digits recipes and ten seconds of import in each worker process.)

    Args:
        recipe: Data, model and training.
        data: The images or the text.
        seed: Seed of weights, minibatches and everything else that is drawn.
        method: The way to train.
        readings: The ways to read models off.
        parallel: Shares minibatches out among processes that train together; None where this one trains alone.

    Attributes:
        task: What is predicted, with its model, minibatches and scores.
        step: Minibatches trained on so far.
        total: Minibatches of the whole training.
        start: The minibatch at which the method begins.
        seconds: Wall time of the training so far, evaluation of the learning curves included.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Split | Corpus,
        seed: int,
        method: Method,
        readings: Sequence[Reading] = (),
        parallel: DataParallel | None = None,
    ) -> None:
        self.parallel = parallel
        self.recipe, self.seed = recipe, seed
        self.method, self.readings = method, list(readings)
        self.device = pick_device(recipe.compute.device)
        self.task = make_task(recipe, data, seed, self.device)
        self.batches = self.task.batches
        self.total = recipe.training.epochs * self.batches.per_epoch
        self.start = steps_at(method.start, self.total)
        self.model = self.fresh_model()
        self.optimizer: torch.optim.Optimizer = self.new_optimizer(self.model)
        self.step = 0
        self.seconds = 0.0
        self._begun = self._running = False
        self._plain = Method(recipe)
        self._loss = torch.zeros((), device=self.device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._rng = _rng_state()

    def fresh_model(self, seed: int | None = None) -> nn.Module:
        """The plain model with its initial weights.

        Args:
            seed: Seed of the weights; None takes the trajectory's.

        Returns:
            A new model on the trajectory's device, in training mode.
        """
        return self.task.fresh_model(self.seed if seed is None else seed)

    def new_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The recipe's optimizer.

        Args:
            model: The model to train.

        Returns:
            The optimizer, over all its parameters.
        """
        return make_optimizer(self.recipe.training, model)

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass, for the recipe's precision.

        Returns:
            An autocast context for bfloat16, else one that does nothing.
        """
        if self.recipe.compute.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def loss(self, x: Tensor, y: Tensor, model: nn.Module | None = None, slot: int | None = None) -> Tensor:
        """Mean cross-entropy of a minibatch.

        Args:
            x: The model's input.
            y: Labels of all its predictions, (N,).
            model: The model; None takes the trajectory's.
            slot: Whose state a recurrent model goes on from; None takes that of the method's turn.

        Returns:
            A scalar, float32.
        """
        model = self.model if model is None else model
        slot = self.task.slot(self.method.turn) if slot is None else slot
        if self.recipe.compute.precision == "float32":
            return F.cross_entropy(self.task.forward(model, x, slot), y)
        with self.autocast():
            logits = self.task.forward(model, x, slot)
        return F.cross_entropy(logits.float(), y)

    def backward(self, loss: Tensor, model: nn.Module | None = None) -> Tensor:
        """Compute the gradients of a minibatch.

        Args:
            loss: What `loss` returned for it.
            model: The model; None takes the trajectory's.

        Returns:
            The loss; where processes share the minibatch, that of all of it.
        """
        loss.backward()
        if self.parallel is None:
            return loss
        return self.parallel.average(loss, (self.model if model is None else model).parameters())

    def clip(self, model: nn.Module | None = None) -> None:
        """Scale the gradients of a minibatch down to the recipe's norm, if it has one and they exceed it.

        Args:
            model: The model; None takes the trajectory's.
        """
        if self.recipe.training.clip is not None:
            parameters = (self.model if model is None else model).parameters()
            torch.nn.utils.clip_grad_norm_(parameters, self.recipe.training.clip)

    def run(
        self,
        until: int,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        """Train up to a minibatch.

        Args:
            until: The number of minibatches to have trained on afterwards.
            on_epoch: Called at the end of every epoch with its number, minibatch, learning rate, mean loss and, every
                `evaluate_every` epochs, the scores on the held-out images.
            on_step: Called after every minibatch with the number of minibatches so far.

        Raises:
            ExperimentError: If the loss of an epoch is not finite.
        """
        with torch.random.fork_rng():
            _set_rng_state(self._rng)
            self._running = True
            begun = time.perf_counter()
            before = self.seconds
            try:
                while self.step < until:
                    self._one_step()
                    self.seconds = before + time.perf_counter() - begun
                    if self.step % self.batches.per_epoch == 0:
                        record = self._end_epoch(self.step // self.batches.per_epoch)
                        self.seconds = before + time.perf_counter() - begun
                        if on_epoch is not None:
                            on_epoch(record)
                    if on_step is not None:
                        on_step(self.step)
            finally:
                self._rng, self._running = _rng_state(), False

    def evaluate(self) -> dict[str, float]:
        """Score what the method predicts with: for late-phase training the averaged model.

        Returns:
            The task's scores on the validation data, or where there is none on the test data.
        """
        members = self.method.members(self) if self._begun else None
        predictor = Predictor(self.model, members, self.method.ensemble, self.task)
        held_out = self.task.validation() or self.task.test()
        return self.task.scores(predictor.score(held_out, self.autocast()))

    def check(self) -> None:
        """Refuse to go on from a loss that is not finite.

        Raises:
            ExperimentError: If the mean loss of the epoch so far is not a finite number.
        """
        loss = self._loss.item()
        if not math.isfinite(loss):
            epoch = (self.step - 1) // self.batches.per_epoch + 1
            raise ExperimentError(
                f"the loss of {self.method.name}, seed {self.seed}, became {loss} in epoch {epoch}; the last "
                f"checkpoint with a finite loss is kept; try a smaller training.lr than {self.recipe.training.lr}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on; nothing of it is copied.

        Returns:
            Tensors and plain values, which `torch.load(weights_only=True)` reads.
        """
        return {
            "step": self.step,
            "seconds": self.seconds,
            "loss": self._loss,
            "rng": _rng_state() if self._running else self._rng,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict() if self._begun else None,
            "task": self.task.state_dict(),
            "readings": {reading.name: reading.state_dict() for reading in self.readings},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where another trajectory of this recipe and seed was saved.

        Args:
            state: What `state_dict` returned, of this trajectory or of plain training up to this method's start.
        """
        if state["method"] is not None:
            self.method.attach(self)
            self._begun = True
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["method"] is not None:
            self.method.load_state_dict(state["method"])
        self.task.load_state_dict(state["task"])
        for reading in self.readings:
            if reading.name in state["readings"]:
                reading.load_state_dict(state["readings"][reading.name])
        self.step, self.seconds = state["step"], state["seconds"]
        self._rng = state["rng"]
        self._loss = state["loss"].to(self.device)

    def _one_step(self) -> None:
        if self.step == self.start and not self._begun:
            self.method.attach(self)
            self.method.begin(self)
            self._begun = True
        lr = learning_rate(self.recipe.training, self.step / self.total)
        if self._begun:
            lr *= self.method.rate
        for group in self.optimizer.param_groups:
            # A group may have a rate of its own, relative to the schedule's.
            group["lr"] = lr * group.get("rate", 1.0)
        x, y = self.task.minibatch(self.step, self.method.turn, self.method.first_round)
        if self.parallel is not None:
            x, y = self.parallel.share(x, y)
        method = self.method if self._begun else self._plain
        self._loss += method.step(self, x, y).detach()
        self.step += 1
        for reading in self.readings:
            reading.after_step(self)

    def _end_epoch(self, epoch: int) -> dict[str, Any]:
        self.check()
        loss = self._loss.item() / self.batches.per_epoch
        self._loss = torch.zeros((), device=self.device)
        for reading in self.readings:
            reading.after_epoch(self, epoch)
        record: dict[str, Any] = {
            "epoch": epoch,
            "step": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": loss,
        }
        if epoch % self.recipe.evaluate_every == 0 or self.step == self.total:
            record |= self.evaluate()
        return record


def _rng_state() -> dict[str, Any]:
    """The global generators, which dropout draws from."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
