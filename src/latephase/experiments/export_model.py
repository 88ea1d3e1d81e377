"""What is handed over of a trained run: its one model, a member or the members' ensemble, with inputs to try it on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_map

from latephase.evaluation import in_use
from latephase.experiments.errors import ExperimentError
from latephase.experiments.evaluate.subject import Subject
from latephase.experiments.image_task import ImageTask
from latephase.experiments.methods import label_of
from latephase.experiments.task import Task
from latephase.experiments.text_task import HeldOut, TextTask
from latephase.export import Agreement, Ensemble, Verification, verify
from latephase.export.outputs import fewer, tensors_of

# Test samples that outputs are compared on, at most; graphs are traced with fewer.
_COMPARED, _TRACED = 256, 2


@dataclass(frozen=True)
class HandOver:
    """A model to be written, on the CPU.

    Attributes:
        title: What it is.
        model: The model.
        check: Its inputs for test samples of the run.
        example: Fewer of them, to trace graphs with.
        dynamic: Which dimensions of the inputs may have other sizes.
        source: What the run predicts as its training left it against what the model does.
        verification: The comparison with a fresh model of the same class; None for an ensemble, which is none.
        facts: What whoever uses the file must know.
    """

    title: str
    model: nn.Module
    check: tuple[Any, ...]
    example: tuple[Any, ...]
    dynamic: Any
    source: Agreement
    verification: Verification | None
    facts: dict[str, Any]


def hand_over(subject: Subject, what: str, batch: int | None = None, length: int | None = None) -> HandOver:
    """Take a model out of a run.

    Args:
        subject: The run.
        what: `averaged`, `ensemble` or `member:K`.
        batch: The one number of samples that the model is to take; None for any.
        length: Characters of each row that a recurrent model is to take, which torch fixes in its graph; None takes
            the run's window.

    Returns:
        The model, on the CPU, with inputs and what it was compared with.

    Raises:
        ExperimentError: If the run has no such model.
    """
    task, run = subject.trajectory.task, subject.run
    _check(subject, what)
    recurrent = bool(getattr(subject.predictor.model, "recurrent", False))
    if length is not None and not recurrent:
        raise ExperimentError(f"--length {length}: the graph of {run.recipe.model.name} is not made for one length")
    inputs = _inputs(task, subject.predictor.model, length, state=recurrent and what != "ensemble")
    if batch is not None:
        there = len(inputs[0])
        if batch > there:
            raise ExperimentError(f"--batch {batch}: the outputs are compared on {there} test samples; take fewer")
        inputs = fewer(inputs, batch)
    name, model, before = _take(subject, what, inputs)
    source = Agreement.of(before, _call(model, inputs))
    verification = None
    if what != "ensemble":
        verification = verify(subject.trajectory.fresh_model(), model, inputs, formats=())
    model = model.cpu().eval()
    check = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, inputs)
    facts = {
        "what": what,
        "method": run.method,
        "seed": run.seed,
        "model": run.recipe.model.name,
        **_facts(task),
        "inputs": [list(tensor.shape) for tensor in tensors_of(check)],
        "outputs": [list(tensor.shape) for tensor in tensors_of(before)],
    }
    title = f"{name} of {label_of(run.method)}, seed {run.seed}: {run.recipe.model.name}"
    if batch is None:
        # Of a single sample, such as a short text, torch would take it that there is never more than one.
        example, dynamic = (
            fewer(tree_map(lambda leaf: torch.cat([leaf, leaf]), check), _TRACED),
            _dynamic(check, any_length=isinstance(task, TextTask) and not recurrent),
        )
    else:
        example, dynamic = check, False
    return HandOver(title, model, check, example, dynamic, source, verification, facts)


def _check(subject: Subject, what: str) -> None:
    """Refuse what the run does not have."""
    method, late = subject.run.method, subject.late
    if what == "averaged" and subject.predictor.ensemble:
        raise ExperimentError(f"--what averaged: {method} predicts with several networks and has no one model")
    if what != "averaged" and late is None:
        raise ExperimentError(f"--what {what}: {method} has no members; runs of late-phase methods have them")
    if late is not None and what.startswith("member:") and _member(what) >= late.members:
        raise ExperimentError(f"--what {what}: the members are 0 to {late.members - 1}")


def _take(subject: Subject, what: str, inputs: tuple[Any, ...]) -> tuple[str, nn.Module, Any]:
    """What the model is called, the model, and what the run predicted with it before."""
    late = subject.late
    if late is None:
        model = subject.plain_model()
        assert model is not None
        return "model", model, _call(subject.predictor.model, inputs)
    if what == "averaged":
        before = _call(late.model, inputs)
        return "averaged model", late.collapse(), before
    before = late.predict(*inputs)
    if what == "ensemble":
        return f"{late.members} members", Ensemble(late), before
    k = _member(what)
    model = subject.trajectory.fresh_model()
    model.load_state_dict(subject.members()[k])
    return f"member {k}", model, tree_map(lambda leaf: leaf[k] if isinstance(leaf, Tensor) else leaf, before)


def _member(what: str) -> int:
    return int(what.removeprefix("member:"))


def _inputs(task: Task, model: nn.Module, length: int | None, state: bool) -> tuple[Any, ...]:
    """Some of the test samples, as the model's `forward` takes them; a recurrent one gets a state to go on from."""
    x, _ = next(iter(task.test()))
    if not isinstance(x, HeldOut):
        return (x[:_COMPARED],)
    tokens = x.tokens[:_COMPARED, :length]
    if not state:
        return (tokens,)
    _, carried = _call(model, (tokens,))
    return tokens, carried


def _dynamic(inputs: tuple[Any, ...], any_length: bool) -> Any:
    batch, length = Dim("batch"), Dim("length")
    return tree_map(lambda _: {0: batch, 1: length} if any_length else {0: batch}, inputs)


def _call(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    with in_use(model):
        return model(*inputs)


def _facts(task: Task) -> dict[str, Any]:
    """How an image or a text becomes the model's input, and what the outputs mean."""
    if isinstance(task, TextTask):
        return {"input": "tokens, int64 (N, length)", "bytes": list(task.corpus.vocabulary)}
    assert isinstance(task, ImageTask)
    images = task.split.train
    mean, std = images.normalisation()
    return {
        "input": "images, float32 (N, channels, height, width), of values from 0 to 1, normalised by mean and std",
        "mean": mean.flatten().tolist(),
        "std": std.flatten().tolist(),
        "classes": list(images.classes),
    }
