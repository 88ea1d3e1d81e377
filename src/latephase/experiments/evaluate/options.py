"""What `latephase evaluate` is asked for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from latephase.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from latephase.experiments.errors import ExperimentError, unknown

VIEWS = ("lines", "plane", "layers", "perturbation")
# Views that show members, as against those that any single model has.
OF_MEMBERS = ("lines", "plane", "layers")


@dataclass(frozen=True)
class Options:
    """What is measured beyond the predictions, and how closely.

    Attributes:
        methods: Methods to evaluate; empty takes all that are there.
        seeds: Their seeds; empty takes all.
        ood: Out-of-distribution sets.
        ood_images: The most images of each; null takes all.
        corruptions: `builtin`, a folder of published arrays, or None.
        kinds: Kinds of corruption; empty takes all.
        severities: Severities.
        corruption_images: The most test images that are corrupted.
        relative_to: The run whose model is the base of relative corruption errors.
        flatness: Whether the Hessian is looked at.
        flatness_images: Training images that its loss is the mean over.
        probes: Random vectors for the trace.
        eigenvalues: How many of the largest eigenvalues.
        landscape: Which views of the landscape.
        landscape_images: Training images that its loss is the mean over.
        plane_points: Points along a side of the plane.
        directions: Random directions of the perturbation.
        geometry_seeds: The most seeds of a comparison of which flatness and landscape are looked at.
    """

    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    ood: tuple[str, ...] = ()
    ood_images: int | None = None
    corruptions: str | None = None
    kinds: tuple[str, ...] = ()
    severities: tuple[int, ...] = tuple(range(1, SEVERITIES + 1))
    corruption_images: int = 200
    relative_to: Path | None = None
    flatness: bool = False
    flatness_images: int = 200
    probes: int = 16
    eigenvalues: int = 3
    landscape: tuple[str, ...] = ()
    landscape_images: int = 200
    plane_points: int = 13
    directions: int = 4
    geometry_seeds: int = 3


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options on a parser; `options_from` reads what it parsed.

    Args:
        parser: The command's parser.
    """
    add, default = parser.add_argument, Options()
    add("--methods", metavar="A,B", help="methods of a comparison to evaluate; by default all")
    add("--seeds", metavar="0,1", help="seeds of a comparison to evaluate; by default all")
    add("--ood", metavar="SET", nargs="+", help="out-of-distribution sets: gaussian, uniform, svhn[:FOLDER], "
        "cifar10[:FOLDER], cifar100[:FOLDER], a parquet file or a folder of images")  # fmt: skip
    add("--ood-images", metavar="N", type=int, help="the most images of each set; by default all")
    add("--corruptions", metavar="SOURCE", help="builtin, or a folder with the published CIFAR-10-C arrays")
    add("--kinds", metavar="A,B", help="kinds of corruption; by default all")
    add("--severities", metavar="1,2", help="severities; by default 1 to 5")
    add("--corruption-images", metavar="N", type=int, default=default.corruption_images,
        help="the most test images that are corrupted (%(default)s)")  # fmt: skip
    add("--relative-to", metavar="RUN", type=Path, help="the run whose corruption errors are the base; in a comparison "
        "it is the method base")  # fmt: skip
    add("--flatness", action="store_true", help="trace and largest eigenvalues of the training loss's Hessian")
    add("--flatness-images", metavar="N", type=int, default=default.flatness_images,
        help="training images that it is computed on (%(default)s)")  # fmt: skip
    add("--probes", metavar="N", type=int, default=default.probes, help="random vectors of the trace (%(default)s)")
    add("--eigenvalues", metavar="N", type=int, default=default.eigenvalues, help="how many of them (%(default)s)")
    add("--landscape", metavar="VIEW", nargs="*", help=f"views of the landscape: {', '.join(VIEWS)}; alone: all")
    add("--landscape-images", metavar="N", type=int, default=default.landscape_images,
        help="training images that they are computed on (%(default)s)")  # fmt: skip
    add("--plane-points", metavar="N", type=int, default=default.plane_points,
        help="points along a side of the plane (%(default)s)")  # fmt: skip
    add("--directions", metavar="N", type=int, default=default.directions,
        help="random directions of the perturbation (%(default)s)")  # fmt: skip
    add("--geometry-seeds", metavar="N", type=int, default=default.geometry_seeds,
        help="seeds of a comparison of which flatness and landscape are looked at (%(default)s)")  # fmt: skip


def options_from(parsed: argparse.Namespace) -> Options:
    """Check what was parsed.

    Args:
        parsed: What a parser with these options found.

    Returns:
        The options.

    Raises:
        ExperimentError: If a value is not one.
    """
    for key, least in (
        ("ood_images", 2),
        ("corruption_images", 1),
        ("flatness_images", 1),
        ("probes", 2),
        ("eigenvalues", 0),
        ("landscape_images", 1),
        ("plane_points", 2),
        ("directions", 2),
        ("geometry_seeds", 1),
    ):
        value = getattr(parsed, key)
        if value is not None and value < least:
            option = key.replace("_", "-")
            raise ExperimentError(f"--{option} {value} is not valid; it takes a whole number from {least}")
    if parsed.corruptions is None and (parsed.kinds or parsed.severities or parsed.relative_to):
        raise ExperimentError("--kinds, --severities and --relative-to need --corruptions builtin or a folder")
    kinds = _names(parsed.kinds)
    if parsed.corruptions == "builtin":
        for kind in kinds:
            if kind not in CORRUPTIONS:
                raise unknown("corruption", kind, CORRUPTIONS)
    severities = _numbers("severities", parsed.severities) or Options().severities
    if not set(severities) <= set(range(1, SEVERITIES + 1)):
        raise ExperimentError(f"--severities {parsed.severities} is not valid; there are 1 to {SEVERITIES}")
    views = parsed.landscape if parsed.landscape or parsed.landscape is None else list(VIEWS)
    for view in views or ():
        if view not in VIEWS:
            raise unknown("view of the landscape", view, VIEWS)
    return Options(
        methods=_names(parsed.methods),
        seeds=_numbers("seeds", parsed.seeds),
        ood=tuple(dict.fromkeys(parsed.ood or ())),
        ood_images=parsed.ood_images,
        corruptions=parsed.corruptions,
        kinds=kinds,
        severities=tuple(sorted(set(severities))),
        corruption_images=parsed.corruption_images,
        relative_to=parsed.relative_to,
        flatness=parsed.flatness,
        flatness_images=parsed.flatness_images,
        probes=parsed.probes,
        eigenvalues=parsed.eigenvalues,
        landscape=tuple(dict.fromkeys(views or ())),
        landscape_images=parsed.landscape_images,
        plane_points=parsed.plane_points,
        directions=parsed.directions,
        geometry_seeds=parsed.geometry_seeds,
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in (text or "").strip("[]").split(",") if part.strip()))


def _numbers(option: str, text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _names(text))
    except ValueError as error:
        raise ExperimentError(f"--{option} {text} is not valid; it takes whole numbers with commas between") from error
