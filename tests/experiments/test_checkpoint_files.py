"""Checkpoints: whole, or refused; a full disk never leaves half of one."""

import errno
import os
from pathlib import Path

import pytest
import torch
from experiment_helpers import assert_same

from latephase import checked_files
from latephase.experiments.checkpoints import load_checkpoint, save_checkpoint, write_text
from latephase.experiments.errors import ExperimentError

STATE = {"step": 3, "model": {"w": torch.arange(50.0)}, "none": None, "readings": {"swa": {"sum": {}}}}


def test_a_checkpoint_reads_back_also_with_plain_torch(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.pt"
    save_checkpoint(path, STATE)
    assert_same(load_checkpoint(path), STATE)
    assert_same(torch.load(path, weights_only=True), STATE)
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "checkpoint.pt") is None


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_a_truncated_checkpoint_is_refused_and_the_previous_one_used(
    tmp_path: Path, kept: float, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE | {"step": 1})
    save_checkpoint(path, STATE | {"step": 2})
    raw = path.read_bytes()
    path.write_bytes(raw[: int(kept * len(raw))])
    loaded = load_checkpoint(path)
    assert loaded is not None
    assert loaded["step"] == 1
    assert "checkpoint.pt is damaged or was not written to its end" in caplog.text


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(ExperimentError, match=r"no whole checkpoint at .*: remove .* to start this run again"):
        load_checkpoint(path)


def test_a_stop_between_the_two_renames_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE | {"step": 1})
    replace = os.replace

    def stop(source: Path, target: Path) -> None:
        if Path(target) == path:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, STATE | {"step": 2})
    loaded = load_checkpoint(path)
    assert loaded is not None
    assert loaded["step"] == 1
    assert not [file for file in tmp_path.iterdir() if file.suffix == ".part"]


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE | {"step": 1})
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*_: object) -> int:
        raise full

    with monkeypatch.context() as patch:
        if where == "fsync":
            patch.setattr(os, "fsync", refuse)
        else:
            patch.setattr(checked_files.Hashing, "write", refuse)
        with pytest.raises(ExperimentError, match=r"no space left on the disk for .*checkpoint\.pt"):
            save_checkpoint(path, STATE | {"step": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    loaded = load_checkpoint(path)
    assert loaded is not None
    assert loaded["step"] == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExperimentError, match=r"cannot write .*recipe\.yaml"):
        write_text(tmp_path / "file" / "recipe.yaml", "text")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_the_kernels_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    from latephase.experiments.metrics_file import append_record

    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(ExperimentError, match=r"cannot write .*metrics\.jsonl: No space left on device"):
        append_record(tmp_path / "metrics.jsonl", {"epoch": 1})
