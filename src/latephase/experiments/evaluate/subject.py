"""A trained model brought back from the disk, with its data and its members."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

import latephase
from latephase.evaluation import member_states
from latephase.experiments.checkpoints import load_checkpoint
from latephase.experiments.config import Data
from latephase.experiments.data import Split
from latephase.experiments.device import prepare_process
from latephase.experiments.errors import ExperimentError
from latephase.experiments.evaluate.target import Run
from latephase.experiments.image_task import ImageTask
from latephase.experiments.methods import METHODS, READINGS, parse_method
from latephase.experiments.outcome import predictor_of
from latephase.experiments.predictor import Predictor
from latephase.experiments.tasks import load_data
from latephase.experiments.text import Corpus
from latephase.experiments.trajectory import Trajectory
from latephase.experiments.weights_file import read_weights


@dataclass(frozen=True)
class Subject:
    """One trained model, ready to predict.

    Attributes:
        run: Where it comes from.
        trajectory: Its data, and its training at the end.
        predictor: What it predicts with.
    """

    run: Run
    trajectory: Trajectory
    predictor: Predictor

    @property
    def images(self) -> ImageTask:
        """Its images and minibatches.

        Raises:
            ExperimentError: If it is a model of text.
        """
        if not isinstance(self.trajectory.task, ImageTask):
            weights = self.run.weights
            raise ExperimentError(f"{weights} is a model of text; latephase evaluate takes classifiers of images")
        return self.trajectory.task

    @property
    def late(self) -> latephase.LatePhase | None:
        """The late phase whose members the method's model is the average of."""
        late = self.trajectory.method.late
        own = parse_method(self.run.method)[1] is None
        return late if own and late is not None and late.phase == "late" else None

    def plain_model(self) -> nn.Module | None:
        """A plain model of its own with the method's weights, in eval mode.

        Returns:
            The model; None if the method predicts with several.
        """
        if self.predictor.ensemble:
            return None
        model = self.trajectory.fresh_model()
        model.load_state_dict(self.predictor.model.state_dict())
        return model.eval()

    def members(self) -> list[OrderedDict[str, Tensor]]:
        """The members as plain state dicts.

        Returns:
            One for each; none without a late phase.
        """
        return [] if self.late is None else member_states(self.late)


def load_subject(run: Run) -> Subject:
    """Bring a trained model back.

    Args:
        run: Where it is.

    Returns:
        The model with its data.

    Raises:
        ExperimentError: If a file is missing or damaged, or does not fit its recipe's model and data.
    """
    prepare_process(run.recipe.compute)
    training, reading = parse_method(run.method)
    readings = [] if reading is None else [READINGS[reading.name](run.recipe)]
    data = _data(run.recipe.data, run.seed)
    trajectory = Trajectory(run.recipe, data, run.seed, METHODS[training.name](run.recipe), readings)
    if run.weights.suffix == ".safetensors":
        _load_weights(trajectory.model, run.weights, trajectory.task.sizes["classes"])
    else:
        _load_checkpoint(trajectory, run, reading.name if reading else None)
    subject = Subject(run, trajectory, predictor_of(trajectory, run.method))
    # The event at which a late phase brings its average into the model.
    subject.predictor.model.eval()
    return subject


@lru_cache(maxsize=2)
def _data(data: Data, seed: int) -> Split | Corpus:
    return load_data(data, seed)


def _load_checkpoint(trajectory: Trajectory, run: Run, reading: str | None) -> None:
    state = load_checkpoint(run.weights)
    if state is None:
        raise ExperimentError(f"there is no checkpoint {run.weights}")
    if state["step"] != trajectory.total:
        raise ExperimentError(
            f"{run.weights} is of minibatch {state['step']} of {trajectory.total}: finish the training, or its data "
            "are not those that it was trained on"
        )
    if reading is not None and reading not in state["readings"]:
        raise ExperimentError(f"{run.weights} holds no {reading}; train {run.method} again")
    try:
        trajectory.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, latephase.LatePhaseError):
            raise
        classes = trajectory.task.sizes["classes"]
        raise _misfit(run.weights, run.recipe.model.name, classes, error) from error


def _load_weights(model: nn.Module, path: Path, classes: int) -> None:
    state = read_weights(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise _misfit(path, type(model).__name__, classes, error) from error


def _misfit(path: Path, model: str, classes: int, error: Exception) -> ExperimentError:
    reason = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
    return ExperimentError(
        f"{path} does not fit the model {model} for {classes} classes, which the recipe and its data make ({reason})"
    )


def spread(count: int, most: int | None) -> Tensor:
    """Positions of at most so many samples, evenly spread over all of them.

    Args:
        count: How many there are.
        most: How many to take; None takes all.

    Returns:
        int64 positions, in order.

    Example:
        >>> spread(10, 4)
        tensor([0, 2, 5, 7])
    """
    if most is None or most >= count:
        return torch.arange(count)
    return torch.arange(most) * count // most
