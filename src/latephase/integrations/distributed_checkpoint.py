"""torch.distributed.checkpoint: a late phase saved on some ranks and resumed on more, fewer, or one."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import STORAGE_TYPES, TensorStorageMetadata
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.checkpoint.storage import StorageReader
from torch.utils._pytree import tree_map

from latephase import LatePhase, LatePhaseValueError
from latephase.checked_files import digest
from latephase.errors import DamagedFileError
from latephase.integrations._distributed_files import check_metadata, check_parts
from latephase.sharding import gathered, local, placed

_DIGEST = "sha256"


class PhaseState(Stateful):
    """What `torch.distributed.checkpoint` saves and loads of a late phase.

    It loads into tensors that are there already, and a phase that has just been attached has none; so for loading it
    has to know what is in the checkpoint. Sharded weights are saved and loaded in parts: members, optimizer states and
    the round's sum of gradients go to as many ranks as there are. Model and optimizer are saved beside it, in the ways
    of `torch.distributed.checkpoint.state_dict`; it does not matter which of the three is loaded first.

    Args:
        late: the phase; for loading, of a model that is sharded (or not) as it is to train on, and with its optimizers.
        checkpoint: where to load from, a path or a reader; None for saving.
        key: under which key of the checkpoint it is.

    Raises:
        LatePhaseValueError: on loading, nothing is under this key; see also `LatePhase.load_state_dict`.
        DamagedFileError: on loading, the checkpoint is damaged, or its index would run code.

    Example:
        >>> import tempfile, torch, latephase, torch.distributed.checkpoint as dcp
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        >>> late = latephase.LatePhase(model, members=2, weights="norm")
        >>> late.start()
        >>> folder = tempfile.mkdtemp()
        >>> _ = dcp.save({"model": model.state_dict(), "late": PhaseState(late)}, checkpoint_id=folder, no_dist=True)
        >>> fresh = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        >>> resumed = latephase.LatePhase(fresh, members=2, weights="norm")
        >>> state = {"model": fresh.state_dict(), "late": PhaseState(resumed, folder)}
        >>> dcp.load(state, checkpoint_id=folder, no_dist=True)
        >>> _ = fresh.load_state_dict(state["model"])
        >>> resumed.phase
        'late'
    """

    def __init__(
        self, late: LatePhase, checkpoint: str | PathLike[str] | StorageReader | None = None, key: str = "late"
    ) -> None:
        self.late, self.key = late, key
        there = checkpoint is None or isinstance(checkpoint, StorageReader)
        self.reader: StorageReader | None = checkpoint if there else FileSystemReader(checkpoint)  # type: ignore[assignment, arg-type]

    def state_dict(self) -> dict[str, Any]:
        """For saving the phase's own state; for loading, room for what the checkpoint holds."""
        if self.reader is not None:
            return self._room(self.reader)
        state = self.late.state_dict()
        # Each rank may save another part of what all ranks have, and under DistributedDataParallel their running
        # statistics differ; the first rank's count.
        late = set(self.late.late_names())
        statistics = [value for name, value in state["values"].items() if name not in late]
        if statistics:
            self.late._rounds.ranks.share_first(statistics)
        return {**state, _DIGEST: digest(tree_map(_whole, state))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from what was loaded.

        Args:
            state_dict: what `state_dict` made room for, filled.

        Raises:
            DamagedFileError: it is not what was saved; nothing has changed.
        """
        # A checkpoint of a version that wrote no checksum is taken as it is.
        stated = state_dict.get(_DIGEST)
        state_dict = {key: value for key, value in state_dict.items() if key != _DIGEST}
        if stated is not None and digest(tree_map(_whole, state_dict)) != stated:
            where = getattr(self.reader, "path", "the checkpoint")
            raise DamagedFileError(
                f"PhaseState: what {where} holds under {self.key!r} is not what was saved; a file of it is damaged, "
                "so resume from another checkpoint"
            )
        self.late.load_state_dict(_complete(state_dict, self.late.members))

    def _room(self, reader: StorageReader) -> dict[str, Any]:
        try:
            check_metadata(reader)
            metadata = reader.read_metadata()
            check_parts(reader, metadata, self.key)
        except FileNotFoundError as error:
            raise LatePhaseValueError(
                f"PhaseState: {error.filename or 'the path'} is not there, so this is no checkpoint; give one that "
                "torch.distributed.checkpoint saved to"
            ) from error
        paths = {name: path for name, path in (metadata.planner_data or {}).items() if str(path[0]) == self.key}
        if not paths:
            kept = sorted({str(path[0]) for path in (metadata.planner_data or {}).values()})
            raise LatePhaseValueError(
                f"PhaseState: the checkpoint has nothing under {self.key!r}; it has {', '.join(kept) or 'nothing'}"
            )
        likes = _Likes(self.late)
        state: dict[str, Any] = {}
        for name, path in paths.items():
            inside = tuple(map(str, path[1:]))
            place = state
            for part in inside[:-1]:
                place = place.setdefault(part, {})
            place[inside[-1]] = likes.room(inside, metadata.state_dict_metadata[name])
        return state


def _whole(leaf: Any) -> Any:
    return gathered(leaf) if isinstance(leaf, Tensor) else leaf


class _Likes:
    """Knows how each tensor of a phase's state is sharded."""

    def __init__(self, late: LatePhase) -> None:
        late.late_parameters()  # takes note of weights that were sharded after the attachment
        self.parameters = dict(late.model.named_parameters(remove_duplicate=False))
        self.base = [steps.base for steps in late._rounds.steps]

    def room(self, path: tuple[str, ...], stored: STORAGE_TYPES) -> Tensor | None:
        if not isinstance(stored, TensorStorageMetadata):
            return None
        like, stacked = self._like(path), int(path[0] == "values")
        if like is None or like.shape != stored.size[stacked:]:
            return torch.empty(stored.size, dtype=stored.properties.dtype)
        part = local(like)
        shape = (*stored.size[:stacked], *part.shape)
        return placed(torch.empty(shape, dtype=stored.properties.dtype, device=part.device), like, stacked)

    def _like(self, path: tuple[str, ...]) -> Tensor | None:
        match path:
            case ("values" | "shared", name) | ("optimizers", _, "states", _, name, _):
                return self.parameters.get(name)
            case ("optimizers", number, "sums", index) if int(number) < len(self.base):
                base = self.base[int(number)]
                return base[int(index)] if int(index) < len(base) else None
        return None


def _complete(state: dict[str, Any], members: int) -> dict[str, Any]:
    """The state as `LatePhase.state_dict` gives it: a checkpoint knows no lists, and nothing of what is empty."""
    optimizers = state.get("optimizers", [])
    if isinstance(optimizers, dict):
        optimizers = [optimizers[str(number)] for number in range(len(optimizers))]
    whole = [
        {
            "done": part["done"],
            "sums": part.get("sums", {}),
            "states": [part.get("states", {}).get(str(k), {}) for k in range(members)],
        }
        for part in optimizers
    ]
    return {"values": {}, "shared": {}, "plain": {}, **state, "optimizers": whole}
