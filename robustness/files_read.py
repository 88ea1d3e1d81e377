"""Every kind of file that the library reads back: how one is written, and how it is read."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import latephase
from latephase.experiments.checkpoints import load_checkpoint, save_checkpoint, write_text
from latephase.experiments.checksums import write_sums
from latephase.experiments.json_file import read_json, write_json
from latephase.experiments.metrics_file import append_record, read_records
from latephase.experiments.models.initial import load_weights
from latephase.experiments.outcome import save_model
from latephase.experiments.recipe import load_recipe, to_yaml
from latephase.experiments.results import read_result
from latephase.experiments.run_folder import claim
from latephase.experiments.text.unpack import plain_file
from latephase.experiments.weights_file import read_weights

RATE, MEMBERS, STEPS, EPOCHS = 0.05, 3, 4, 12


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: what the table calls it.
        write: writes it, and what belongs beside it, into a folder; returns the file to be damaged.
        read: reads it as the library does; everything that was taken from it.
        before: makes what may take its place, which a warning has to say; its content.
        unchecked: why some damage cannot be noticed; empty where all of it must be.
        abroad: whether torch's or a trainer's own reader comes before the library's checks.
        cheap: whether reading it a few dozen times belongs into the fast tests.
        folder: whether an error may name the folder, of which the file is a part.
    """

    name: str
    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    before: Callable[[Path], list[Any]] | None = None
    unchecked: str = ""
    abroad: bool = False
    cheap: bool = True
    folder: bool = False


def network() -> nn.Sequential:
    """The same weights at every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def phase(steps: int = STEPS) -> tuple[latephase.LatePhase, torch.optim.Optimizer]:
    """A late phase in the middle of a round."""
    model = network()
    late = latephase.LatePhase(model, members=MEMBERS, noise=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    late.optimizer(optimizer)
    late.start()
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 8)).square().mean().backward()
        optimizer.step()
    return late, optimizer


def state(steps: int = STEPS) -> dict[str, Any]:
    """A training checkpoint's content."""
    late, optimizer = phase(steps)
    own = {"model": dict(late.model.state_dict()), "optimizer": optimizer.state_dict(), "late": late.state_dict()}
    return {"step": steps, **own, "seconds": 1.5, "readings": {}}


def _checkpoint(folder: Path) -> Path:
    path = folder / "checkpoint.pt"
    save_checkpoint(path, state(STEPS - 1))
    save_checkpoint(path, state())
    return path


def _fork(folder: Path) -> Path:
    save_checkpoint(folder / "fork-4.pt", state())
    return folder / "fork-4.pt"


def _weights(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        save_model(path, dict(network().state_dict()))
        write_sums(folder, {name: path.read_bytes()})
        return path

    return write


def _loaded_weights(path: Path) -> dict[str, Tensor]:
    model = network()
    load_weights(model, str(path))
    return dict(model.state_dict())


def _bare(folder: Path) -> Path:
    import safetensors.torch

    path = folder / "foreign.safetensors"
    safetensors.torch.save_file(dict(network().state_dict()), path)
    return path


RESULT: dict[str, Any] = {
    "method": "late-phase",
    "seed": 0,
    "test": {"accuracy": 0.9316770186335404, "nll": 0.2313829845},
    "reliability": {"count": [0.0, 3.0, 11.0], "confidence": [0.1, 0.25, 0.5], "accuracy": [0.0, 0.3333, 0.5454]},
    "validation": None,
    "disagreement": [[0.0, 0.01], [0.01, 0.0]],
    "sample": {"prompt": "He", "text": "llo \u00e9"},
}


def _result(folder: Path) -> Path:
    import json

    text = json.dumps(RESULT)
    write_sums(folder, {"result.json": text.encode()})
    write_text(folder / "result.json", text)
    return folder / "result.json"


def _results(folder: Path) -> Path:
    write_json(folder / "results.json", {"kind": "compare", "settings": [RESULT, RESULT], "seconds": 12.5})
    return folder / "results.json"


def _recipe(folder: Path) -> Path:
    claim(folder / "run", load_recipe("digits-noisy"))
    return folder / "run" / "recipe.yaml"


def _own_recipe(folder: Path) -> Path:
    path = folder / "mine.yaml"
    write_text(path, to_yaml(load_recipe("digits-noisy")))
    return path


def _loaded_recipe(path: Path) -> dict[str, Any]:
    return {"yaml": to_yaml(load_recipe(str(path)))}


def _records() -> list[dict[str, Any]]:
    return [
        {"epoch": e, "step": 7 * e, "lr": 0.1 / e, "loss": 1.7 / e, "accuracy": 1 - 1 / e} for e in range(1, EPOCHS + 1)
    ]


def _metrics(folder: Path) -> Path:
    for record in _records():
        append_record(folder / "metrics.jsonl", record)
    return folder / "metrics.jsonl"


def _read_metrics(path: Path) -> dict[str, Any]:
    return {str(record["step"]): record for record in read_records(path, until=7 * EPOCHS)}


def _parts_of_metrics(path: Path) -> list[Any]:
    """Whatever is left of the epochs, each as it was: the check of each line is what is tried here."""
    import itertools

    whole = {str(record["step"]): record for record in _records()}
    ends = [dict(itertools.islice(whole.items(), n)) for n in range(EPOCHS)]
    gaps = [{key: value for key, value in whole.items() if key not in out} for out in itertools.combinations(whole, 1)]
    pairs = [{key: value for key, value in whole.items() if key not in out} for out in itertools.combinations(whole, 2)]
    return [*ends, *gaps, *pairs]


def _packed(suffix: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import lzma
        import random
        import zipfile

        chance = random.Random(1)
        text = " ".join(chance.choice(("late", "phase", "weights", "round")) + str(i) for i in range(3000)).encode()
        path = folder / f"text{suffix}"
        if suffix == ".xz":
            path.write_bytes(lzma.compress(text))
        else:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("text", text)
        return path

    return write


def _unpacked(path: Path) -> dict[str, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as cache:
        return {"text": plain_file(path, Path(cache)).read_bytes().hex()}


def _cached(what: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        text = plain_file(_packed(".xz")(folder), folder / "cache")
        return text if what == "text" else text.with_suffix(".json")

    return write


def _from_cache(path: Path) -> dict[str, Any]:
    folder = path.parent.parent
    return {"text": plain_file(folder / "text.xz", folder / "cache").read_bytes().hex()}


def _distributed(what: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import torch.distributed.checkpoint as dcp

        from latephase.integrations.distributed_checkpoint import PhaseState

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save({"late": PhaseState(phase()[0])}, checkpoint_id=folder, no_dist=True)
        return folder / what

    return write


def _from_distributed(path: Path) -> dict[str, Any]:
    import torch.distributed.checkpoint as dcp

    from latephase.integrations.distributed_checkpoint import PhaseState

    late, _ = phase(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load({"late": PhaseState(late, path.parent)}, checkpoint_id=path.parent, no_dist=True)
    return late.state_dict()


KINDS = [
    Kind("training checkpoint", _checkpoint, lambda p: load_checkpoint(p), lambda p: [state(STEPS - 1)]),
    Kind("fork of a training", _fork, lambda p: load_checkpoint(p)),
    Kind("model.safetensors of a run", _weights("model.safetensors"), _loaded_weights),
    Kind("ensemble.safetensors of a run", _weights("ensemble.safetensors"), lambda p: read_weights(p)),
    Kind(
        "safetensors from elsewhere",
        _bare,
        _loaded_weights,
        unchecked="the format has no checksum: a flipped bit of a number is another number",
    ),
    Kind("result.json", _result, read_result),
    Kind("results.json, evaluation.json", _results, lambda p: read_json(p, "run the command again")),
    Kind("recipe.yaml of a run", _recipe, _loaded_recipe),
    Kind(
        "recipe.yaml of one's own",
        _own_recipe,
        _loaded_recipe,
        unchecked="a text that people edit has no checksum: another valid recipe is another recipe",
    ),
    Kind("metrics.jsonl", _metrics, _read_metrics, _parts_of_metrics),
    Kind("text archive, .xz", _packed(".xz"), _unpacked),
    Kind("text archive, .zip", _packed(".zip"), _unpacked),
    Kind("unpacked text", _cached("text"), _from_cache),
    Kind("unpacked text's record", _cached("record"), _from_cache),
    Kind(
        "distributed checkpoint, data",
        _distributed("__0_0.distcp"),
        _from_distributed,
        abroad=True,
        cheap=False,
        folder=True,
    ),
    Kind(
        "distributed checkpoint, index",
        _distributed(".metadata"),
        _from_distributed,
        abroad=True,
        cheap=False,
        folder=True,
    ),
]
"""Those that need nothing but torch and the experiments; `of_trainers` and `exported` have the others."""
