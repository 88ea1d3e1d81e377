"""What a trained trajectory is worth: the model of a method, its scores and those of the members."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from latephase.evaluation import evaluate_members
from latephase.experiments.checkpoints import write_text, write_whole
from latephase.experiments.checksums import write_sums
from latephase.experiments.methods import parse_method
from latephase.experiments.predictor import Predictor
from latephase.experiments.text import as_text, generate
from latephase.experiments.text_task import TextTask
from latephase.experiments.trajectory import Trajectory

# What a model of text is asked to write, and from how much of the test text.
_PROMPT, _WRITTEN, _TEMPERATURE, _SEED = 200, 400, 0.8, 0


def save_outcome(trajectory: Trajectory, method: str, folder: Path, shared_seconds: float) -> None:
    """Read a method's model off a finished trajectory; write its weights and `result.json`.

    The weights go to `model.safetensors`, which loads strictly into the plain model; those of an ensemble, which is no
    one model, to `ensemble.safetensors`. The checksums of both files go to `SHA256SUMS`.

    Args:
        trajectory: The trajectory, at its end.
        method: The method.
        folder: Where the files go; the result is written last.
        shared_seconds: Seconds of its training that other methods share.

    Raises:
        ExperimentError: If a file cannot be written.
    """
    begun = time.perf_counter()
    predictor = predictor_of(trajectory, method)
    task = trajectory.task
    scored = None
    if predictor.members is not None:
        scored = evaluate_members(predictor.members, task.test(), trajectory.autocast())
    if scored is not None and predictor.ensemble:
        test = scored[0]
    else:
        test = predictor.score(task.test(), trajectory.autocast())
    result: dict[str, Any] = {
        "method": method,
        "seed": trajectory.seed,
        "test": task.scores(test),
        "reliability": test.reliability(),
        "validation": None,
        "ensemble": None,
        "member_mean": None,
        "disagreement": None,
        "cost": trajectory.method.cost,
        "minibatches": trajectory.total * trajectory.method.cost,
        "start": trajectory.start if trajectory.start < trajectory.total else None,
        "started": trajectory.method.started,
    }
    validation = task.validation()
    if validation is not None:
        result["validation"] = task.scores(predictor.score(validation, trajectory.autocast()))
    if scored is not None:
        ensemble, members, disagreement = scored
        result["ensemble"] = task.scores(ensemble)
        result["member_mean"] = _mean([task.scores(m) for m in members])
        result["disagreement"] = disagreement
    result["seconds"] = {
        "shared": shared_seconds,
        "own": trajectory.seconds - shared_seconds,
        "evaluation": time.perf_counter() - begun,
    }
    if isinstance(task, TextTask) and trajectory.seed == trajectory.recipe.seed and not predictor.ensemble:
        result["sample"] = _sample(task, predictor)
    if trajectory.method.ensemble:
        name, weights = "ensemble.safetensors", trajectory.method.weights(trajectory)
    else:
        name, weights = "model.safetensors", predictor.model.state_dict()
    content, text = _serialised(weights), json.dumps(result)
    write_whole(folder / name, lambda file: file.write(content))
    write_sums(folder, {name: content, "result.json": text.encode()})
    write_text(folder / "result.json", text)


def predictor_of(trajectory: Trajectory, method: str) -> Predictor:
    """What a method predicts with at the end of a trajectory.

    Args:
        trajectory: The trajectory.
        method: The method.

    Returns:
        The trajectory's own model (in eval mode the averaged one) and its members; for a reading such as SWA the model
        that was read off.
    """
    training, reading_class = parse_method(method)
    if reading_class is None:
        way = trajectory.method
        return Predictor(trajectory.model, way.members(trajectory), training.ensemble, trajectory.task)
    reading = next(r for r in trajectory.readings if r.name == reading_class.name)
    return Predictor(reading.model(trajectory), reading.members(trajectory), reading.ensemble, trajectory.task)


def save_model(path: Path, state: dict[str, Tensor]) -> None:
    """Write the weights of a plain model, which load strictly into it.

    Args:
        path: The file.
        state: Its state dict; tensors that share memory are written once each.

    Raises:
        ExperimentError: If the disk is full or cannot be written to.
    """
    content = _serialised(state)
    write_whole(path, lambda file: file.write(content))


def _serialised(state: dict[str, Tensor]) -> bytes:
    own = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    return safetensors.torch.save(own, metadata={"format": "pt"})


def _sample(task: TextTask, predictor: Predictor) -> dict[str, Any]:
    """What the model writes on from the beginning of the test text, as text that is safe to show."""
    prompt = task.corpus.decode(task.corpus.test.tokens(slice(_PROMPT)))
    window = task.recipe.text.length
    written = generate(
        predictor.model, task.corpus, prompt, _WRITTEN, temperature=_TEMPERATURE, seed=_SEED, window=window
    )
    return {"prompt": as_text(prompt), "text": as_text(written), "temperature": _TEMPERATURE, "seed": _SEED}


def _mean(scores: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(s[name] for s in scores) / len(scores) for name in scores[0]}
