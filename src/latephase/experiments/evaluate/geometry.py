"""The loss around a subject's weights and between its members."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from latephase.errors import LatePhaseError
from latephase.evaluation.flatness import flatness
from latephase.evaluation.landscape import (
    State,
    StateEvaluator,
    layer_disagreement,
    layer_distances,
    line,
    perturb,
    plane,
)
from latephase.experiments.data import AnyImages
from latephase.experiments.evaluate.options import Options
from latephase.experiments.evaluate.subject import Subject, spread

_LINE_POINTS = 9
# Layers are exchanged one by one for every member, each time with a pass over the test images.
_TEST_IMAGES = 1000
_SIZES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def hessian(subject: Subject, options: Options) -> dict[str, Any] | None:
    """Trace and largest eigenvalues of the Hessian of the training loss at a subject's model.

    Args:
        subject: The trained model.
        options: Images, probes and eigenvalues.

    Returns:
        Plain values; None for a method that is no single model. Where Lanczos does not converge, `failed` says so.
    """
    model = subject.plain_model()
    if model is None:
        return None
    batches = _batches(subject, subject.images.split.train, options.flatness_images)
    try:
        found = flatness(model, batches, probes=options.probes, eigenvalues=options.eigenvalues)
    except LatePhaseError as error:
        if "tolerance" not in str(error):
            raise
        found = flatness(model, batches, probes=options.probes, eigenvalues=0)
        return {**found.to_dict(), "failed": str(error)}
    return {**found.to_dict(), "failed": None}


def landscape(subject: Subject, options: Options, advance: Callable[[], None]) -> dict[str, Any] | None:
    """The views of the landscape that are asked for and that a subject has.

    Losses are those of training images without augmentation; BatchNorm's statistics are recomputed at every point from
    the same augmented training minibatches.

    Args:
        subject: The trained model.
        options: Views, images, points and directions.
        advance: Called after each view.

    Returns:
        A value for each view, None where it needs members that there are not; None for a method that is no single
        model.
    """
    model = subject.plain_model()
    if model is None:
        return None
    train = _batches(subject, subject.images.split.train, options.landscape_images)
    test = _batches(subject, subject.images.split.test, _TEST_IMAGES)
    statistics = _augmented(subject, options.landscape_images)
    on_train, on_test = (StateEvaluator(model, batches, statistics) for batches in (train, test))
    average, members = {k: v.clone() for k, v in model.state_dict().items()}, subject.members()
    found: dict[str, Any] = dict.fromkeys(("lines", "plane", "layers", "perturbation"))
    for view in options.landscape:
        if view == "lines" and len(members) > 1:
            found[view] = _lines(members, average, on_train, on_test)
        elif view == "plane" and len(members) > 2:
            found[view] = plane(members[:3], on_train, options.plane_points, average=average).to_dict()
        elif view == "layers" and len(members) > 1:
            found[view] = _layers(members, average, StateEvaluator(model, test))
        elif view == "perturbation":
            found[view] = perturb(average, on_train, _SIZES, options.directions).to_dict()
        advance()
    samples = {"samples": sum(len(y) for _, y in train), "test_samples": sum(len(y) for _, y in test)}
    return samples | found


def _lines(members: Sequence[State], average: State, train: StateEvaluator, test: StateEvaluator) -> dict[str, Any]:
    stations, names = [members[0], average, members[1]], ["member 1", "average", "member 2"]
    direct = line([members[0], members[1]], train, _LINE_POINTS, [names[0], names[2]])
    return {
        "train": line(stations, train, _LINE_POINTS, names).to_dict(),
        "test": line(stations, test, _LINE_POINTS, names).to_dict(),
        "direct": direct.to_dict(),
    }


def _layers(members: Sequence[State], average: State, evaluator: StateEvaluator) -> dict[str, Any]:
    """Distances of the members' layers, and the predictions that each layer of theirs changes."""
    return {
        "distances": [d.to_dict() for d in layer_distances(members, average)],
        "disagreement": [d.to_dict() for d in layer_disagreement(members, average, evaluator)],
    }


def _batches(subject: Subject, images: AnyImages, most: int) -> list[tuple[Tensor, Tensor]]:
    """Some images without augmentation, as a list of minibatches."""
    return list(subject.images.batches.plain(images.take(spread(len(images), most))))


def _augmented(subject: Subject, images: int) -> list[Tensor]:
    """Training minibatches of the pass after the last one, as many as hold so many images."""
    batches, epochs = subject.images.batches, subject.run.recipe.training.epochs
    count = min(batches.per_epoch, -(-images // batches.batch_size))
    return [x.clone() for x, _ in itertools.islice(batches.epoch(epochs), count)]
