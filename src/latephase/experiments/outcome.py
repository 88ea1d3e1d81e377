"""What a trained trajectory is worth: the model of a method, its scores and those of the members."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

import latephase
from latephase.evaluation import evaluate_members, evaluate_model
from latephase.experiments.checkpoints import write_text, write_whole
from latephase.experiments.methods import parse_method
from latephase.experiments.trajectory import Trajectory


def save_outcome(trajectory: Trajectory, method: str, folder: Path, shared_seconds: float) -> None:
    """Read a method's model off a finished trajectory; write `model.safetensors` and `result.json`.

    Args:
        trajectory: The trajectory, at its end.
        method: The method.
        folder: Where the two files go; the result is written last.
        shared_seconds: Seconds of its training that other methods share.

    Raises:
        ExperimentError: If a file cannot be written.
    """
    begun = time.perf_counter()
    model = model_of(trajectory, method)
    split, batches = trajectory.split, trajectory.batches
    test = evaluate_model(model, batches.plain(split.test), trajectory.autocast())
    result: dict[str, Any] = {
        "method": method,
        "seed": trajectory.seed,
        "test": test.compute(),
        "reliability": test.reliability(),
        "validation": None,
        "ensemble": None,
        "member_mean": None,
        "disagreement": None,
        "minibatches": trajectory.total,
        "start": trajectory.start if trajectory.start < trajectory.total else None,
    }
    if split.validation is not None:
        scores = evaluate_model(model, batches.plain(split.validation), trajectory.autocast())
        result["validation"] = scores.compute()
    if parse_method(method)[1] is None:
        result |= _members(trajectory)
    result["seconds"] = {
        "shared": shared_seconds,
        "own": trajectory.seconds - shared_seconds,
        "evaluation": time.perf_counter() - begun,
    }
    save_model(folder / "model.safetensors", model.state_dict())
    write_text(folder / "result.json", json.dumps(result))


def model_of(trajectory: Trajectory, method: str) -> nn.Module:
    """The model that a method makes of a trajectory.

    Args:
        trajectory: The trajectory.
        method: The method.

    Returns:
        The trajectory's own model (in eval mode the averaged one), or for a reading such as SWA a plain model with
        the weights read off and the BatchNorm statistics of one augmented pass over the training images.
    """
    _, reading_class = parse_method(method)
    if reading_class is None:
        return trajectory.model
    reading = next(r for r in trajectory.readings if r.name == reading_class.name)
    model = trajectory.fresh_model()
    model.load_state_dict(reading.weights())
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        with trajectory.autocast():
            # The pass after the last one of training: another shuffle, the same augmentation.
            images = (x for x, _ in trajectory.batches.epoch(trajectory.recipe.training.epochs))
            latephase.recompute_statistics(model, images)
    return model


def save_model(path: Path, state: dict[str, Tensor]) -> None:
    """Write the weights of a plain model, which load strictly into it.

    Args:
        path: The file.
        state: Its state dict; tensors that share memory are written once each.

    Raises:
        ExperimentError: If the disk is full or cannot be written to.
    """
    own = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    content = safetensors.torch.save(own, metadata={"format": "pt"})
    write_whole(path, lambda file: file.write(content))


def _members(trajectory: Trajectory) -> dict[str, Any]:
    late = trajectory.method.late
    if late is None or late.phase != "late":
        return {}
    batches = trajectory.batches.plain(trajectory.split.test)
    ensemble, members, disagreement = evaluate_members(late, batches, trajectory.autocast())
    return {
        "ensemble": ensemble.compute(),
        "member_mean": _mean([m.compute() for m in members]),
        "disagreement": disagreement,
    }


def _mean(scores: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(s[name] for s in scores) / len(scores) for name in scores[0]}
