"""Run folders: one recipe each, written into it, and refused to another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from latephase.experiments.checkpoints import write_text
from latephase.experiments.config import Recipe
from latephase.experiments.errors import ExperimentError
from latephase.experiments.recipe import identity, read_resolved, to_file
from latephase.whole_files import remove_leftovers


def claim(folder: Path, recipe: Recipe, run: tuple[str, ...] = ()) -> bool:
    """Make a folder the run folder of a recipe, or find that it is.

    Args:
        folder: The folder; it is made if need be.
        recipe: The recipe.
        run: Further fields that must be the same, such as the method and the seed of a single training.

    Returns:
        True if a run of this recipe was begun there before.

    Raises:
        ExperimentError: If the folder holds something else.
    """
    path = folder / "recipe.yaml"
    remove_leftovers(folder)
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ExperimentError(f"{folder} is not empty and holds no recipe.yaml; choose another --output")
        write_text(path, to_file(recipe))
        return False
    there = read_resolved(path)
    differs = difference(_fields(there, run), _fields(recipe, run))
    if differs is not None:
        raise ExperimentError(
            f"{folder} is the run folder of another recipe ({differs}); choose another --output or remove it"
        )
    write_text(path, to_file(recipe))
    return True


def difference(there: Mapping[str, object], here: Mapping[str, object]) -> str | None:
    """What tells two runs apart, in words.

    Args:
        there: Fields and values of what was found.
        here: Those of what is wanted.

    Returns:
        The first field that differs and both its values; None if there is none.
    """
    for key in here:
        if there[key] != here[key]:
            return f"{key} is {there[key]} there, {here[key]} here"
    return None


def _fields(recipe: Recipe, run: tuple[str, ...]) -> dict[str, object]:
    return identity(recipe) | {key: getattr(recipe, key) for key in run}
