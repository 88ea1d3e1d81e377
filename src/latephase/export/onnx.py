"""ONNX: the model as a graph of ONNX operators with its weights, from the program that `torch.export` makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from latephase.export.outputs import tensors_of
from latephase.export.program import calm, trace

# A protocol buffer holds 2 GiB; larger weights go to a second file beside it.
_ROOM = 2**31 - 2**20


def write(model: nn.Module, args: tuple[Any, ...], path: Path, dynamic: Any) -> str:
    """See `Format.write`."""
    with calm():
        program = torch.onnx.export(trace(model, args, dynamic), dynamo=True, verbose=False)
    assert program is not None
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    program.save(str(path), external_data=size > _ROOM)
    return f"weights in {path.name}.data" if size > _ROOM else ""


def read(path: Path, model: nn.Module) -> Callable[..., list[Tensor]]:
    """See `Format.read`: the tensors of the outputs, from onnxruntime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def predict(*args: Any) -> list[Tensor]:
        given = [tensor.detach().cpu().numpy() for tensor in tensors_of(args)]
        outputs = session.run(None, dict(zip(names, given, strict=True)))
        return [torch.from_numpy(output) for output in outputs]

    return predict
