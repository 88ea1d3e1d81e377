"""AOTInductor: the program compiled to machine code, which runs without Python.

This machine's C++ compiler makes it. The file is a zip archive with a shared library: to read it is to run its code, so
read none of unknown origin.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latephase.checked_files import check_archive
from latephase.export.program import trace


def write(model: nn.Module, args: tuple[Any, ...], path: Path, dynamic: Any) -> str:
    """See `Format.write`."""
    torch._inductor.aoti_compile_and_package(trace(model, args, dynamic), package_path=str(path))
    return "machine code: it runs on processors like this one"


def read(path: Path, model: nn.Module) -> Callable[..., Any]:
    """See `Format.read`."""
    check_archive(path)
    compiled: Callable[..., Any] = torch._inductor.aoti_load_package(str(path))
    return compiled
