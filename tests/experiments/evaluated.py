"""A comparison that trains in a second and its evaluation with everything on, made once for all tests of a file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from experiment_helpers import options
from PIL import Image

from latephase.cli import main

METHODS = "[base,swa,late-phase]"
EVERYTHING = [
    "--ood", "gaussian", "uniform",
    "--ood-images", "12",
    "--corruptions", "builtin",
    "--kinds", "fog,gaussian_noise",
    "--corruption-images", "20",
    "--flatness", "--flatness-images", "20", "--probes", "2", "--eigenvalues", "1",
    "--landscape",
    "--landscape-images", "12",
    "--plane-points", "3",
    "--directions", "2",
]  # fmt: skip


def trained(folder: Path, *, methods: str = METHODS, seeds: int = 2, **changes: Any) -> Path:
    """A finished comparison of the tiny recipe, in a folder."""
    extra = options(training__epochs=3, methods=methods, seeds=seeds, late_phase__members=3, **changes)
    assert main(["compare", "digits-noisy", *extra, "--workers=1", f"--output={folder / 'run'}"]) == 0
    return folder / "run"


def evaluated(run: Path, *arguments: str) -> dict[str, Any]:
    """What `latephase evaluate` writes of a run."""
    output = run.parent / "evaluation"
    assert main(["evaluate", str(run), *arguments, f"--output={output}"]) == 0
    results: dict[str, Any] = json.loads((output / "evaluation.json").read_text())
    return results


def images(folder: Path, count: int, size: int = 12, seed: int = 0) -> Path:
    """A folder of random colour images, without folders in it."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder
