"""The members beside a Trainer's checkpoint: where the file is, and whether it belongs there."""

from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..checked_files import read_tensors, write_tensors
from ..errors import DamagedFileError, LatePhaseError
from ..phase import LatePhase
from ..whole_files import write_whole

NAME = "latephase.pt"
CLOSE = 1e-3
"""The file's average and the checkpoint's model differ at most by this part: rounding on another device."""


def written_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Where the Trainer has just written its checkpoint.

    Raises:
        LatePhaseError: it is not there; a hyperparameter search writes elsewhere.
    """
    folder = _folder(args, state)
    if not folder.is_dir():
        raise LatePhaseError(
            f"no checkpoint folder {folder}: a Trainer that names its checkpoints otherwise, as in a hyperparameter "
            "search, cannot have the members beside them; use save_strategy='no' or save_only_model=True"
        )
    return folder


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def save_members(folder: Path, late: dict[str, Any], beginning: dict[str, Any], snapshots: dict[str, Any]) -> None:
    """Write the file: tensors, numbers and strings, which `torch.load(weights_only=True)` reads, and their checksum."""
    state = {"late": late, "beginning": beginning, "snapshots": snapshots}
    write_whole(folder / NAME, lambda file: write_tensors(file, state))


def find_members(resume_from: str | None, args: TrainingArguments, state: TrainerState) -> Path | None:
    """The members' file of the checkpoint that the Trainer resumes from, which it does not tell its callbacks."""
    folders = [folder for folder in (resume_from, args.resume_from_checkpoint) if isinstance(folder, str)]
    for folder in (*map(Path, folders), _folder(args, state)):
        if (folder / NAME).is_file():
            return folder / NAME
    return None


def load_members(path: Path, late: LatePhase) -> tuple[dict[str, Any], dict[str, Any]]:
    """Resume the phase from the file.

    Returns:
        The states of the beginning and of the snapshots.

    Raises:
        LatePhaseError: the file is damaged or not ours, or its members do not average to the model that the Trainer
            has loaded.
    """
    try:
        saved = read_tensors(path)
    except DamagedFileError as error:
        raise LatePhaseError(f"{error}; resume from another checkpoint, or begin the late phase anew") from error
    loaded = late.averaged_state_dict()
    late.load_state_dict(saved["late"])
    for name, average in late.averaged_state_dict().items():
        if average.is_floating_point():
            far = (average - loaded[name]).abs().max() if average.numel() else 0.0
            if far > CLOSE * loaded[name].abs().max():
                raise LatePhaseError(
                    f"{path}: its members do not average to the model that the Trainer resumes from ({name!r} differs "
                    f"by {float(far):.3g}); either the file is another checkpoint's, and resume_from=... of "
                    "LatePhaseCallback can give the right folder, or the Trainer has passed over weights that its "
                    "checkpoint has under other names"
                )
    return saved["beginning"], saved["snapshots"]
