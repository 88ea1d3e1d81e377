"""ONNX: the model as a graph of ONNX operators with its weights, from the program that `torch.export` makes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from latephase.errors import DamagedFileError
from latephase.export.outputs import tensors_of
from latephase.export.program import calm, trace

# A protocol buffer holds 2 GiB; larger weights go to a second file beside it.
_ROOM = 2**31 - 2**20
# ONNX has no checksum of its own: one stands at the end, where other programs take it for what it is, metadata.
_KEY = "latephase.sha256"
_CHUNK = 2**20


def write(model: nn.Module, args: tuple[Any, ...], path: Path, dynamic: Any) -> str:
    """See `Format.write`."""
    with calm():
        program = torch.onnx.export(trace(model, args, dynamic), dynamo=True, verbose=False)
    assert program is not None
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    program.save(str(path), external_data=size > _ROOM)
    with open(path, "ab") as file:
        file.write(_sealed(_checksum(path, path.stat().st_size)))
    return f"weights in {path.name}.data" if size > _ROOM else ""


def read(path: Path, model: nn.Module) -> Callable[..., list[Tensor]]:
    """See `Format.read`: the tensors of the outputs, from onnxruntime on the CPU."""
    _check(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def predict(*args: Any) -> list[Tensor]:
        given = [tensor.detach().cpu().numpy() for tensor in tensors_of(args)]
        outputs = session.run(None, dict(zip(names, given, strict=True)))
        return [torch.from_numpy(output) for output in outputs]

    return predict


def _sealed(checksum: str) -> bytes:
    """One more entry of the model's `metadata_props`, as protocol buffers write it; these may be appended."""
    key, value = _KEY.encode(), checksum.encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
    return b"\x72" + bytes([len(entry)]) + entry


def _checksum(path: Path, size: int) -> str:
    """The SHA-256 of the first bytes of the file, and of all of its second file if there is one."""
    hashed, second = hashlib.sha256(), path.with_name(f"{path.name}.data")
    with open(path, "rb") as file:
        while size > 0 and (chunk := file.read(min(size, _CHUNK))):
            hashed.update(chunk)
            size -= len(chunk)
    if second.exists():
        with open(second, "rb") as file:
            hashed.update(hashlib.file_digest(file, "sha256").digest())
    return hashed.hexdigest()


def _check(path: Path) -> None:
    """Refuse a file that is not what its checksum was made of; files of other programs have none."""
    seal = _sealed("0" * 64)
    size = path.stat().st_size - len(seal)
    if size < 0:
        return
    with open(path, "rb") as file:
        file.seek(size)
        end = file.read()
    if end[:-64] == seal[:-64] and _sealed(_checksum(path, size)) != end:
        raise DamagedFileError(f"{path} is damaged: it is not what its checksum was made of; export it again")
