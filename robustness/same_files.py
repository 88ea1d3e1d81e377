"""Whether two run folders hold the same, bit for bit, but for what is measured in seconds."""

import json
from pathlib import Path
from typing import Any

import torch

from latephase.checked_files import digest
from latephase.experiments.checksums import SUMS, damaged

# Of a run that was begun again: when, how fast, in how many goes, and the checksum of these.
_APART = {"seconds", "training_seconds", "date", "command", "commit", "legs", "per_second", "sha256"}
# Pages and tables show seconds; a checkpoint on the way is of another minibatch each time.
_SKIPPED = {".html", ".csv", ".md", ".svg", ".txt"}


def differences(ours: Path, theirs: Path) -> list[str]:
    """What differs between two run folders.

    Args:
        ours: One.
        theirs: The other.

    Returns:
        Relative paths and what is wrong with them; empty if the folders hold the same.
    """
    names = [_names(ours), _names(theirs)]
    wrong = [f"{name}: only in one" for name in sorted(names[0] ^ names[1])]
    wrong += [f"{path.name}: left over" for path in ours.rglob("*.part")]
    for name in sorted(names[0] & names[1]):
        one, other = ours / name, theirs / name
        if one.name == SUMS:
            wrong += [f"{path.name}: not what was written" for path in damaged(one.parent)]
        elif _content(one) != _content(other):
            wrong.append(f"{name}: differs")
    return wrong


def _names(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in _SKIPPED)
    kept = (path for path in found if not path.name.startswith(("previous-", ".")))
    return {str(path.relative_to(folder)) for path in kept if path.parts[-2:] != ("shared", "checkpoint.pt")}


def _content(path: Path) -> Any:
    if path.suffix == ".pt":
        return digest(_without(torch.load(path, map_location="cpu", weights_only=True)))
    if path.suffix == ".json":
        return _without(json.loads(path.read_text()))
    return path.read_bytes()


def _without(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without(value) for key, value in tree.items() if key not in _APART}
    return [_without(value) for value in tree] if isinstance(tree, list) else tree
