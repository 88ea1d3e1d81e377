"""The files of a `torch.distributed.checkpoint`: an index, which is a pickle, and archives end to end."""

from __future__ import annotations

import io
import pickle
from enum import EnumType
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as kinds
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import StorageReader

from ..checked_files import check_archive
from ..errors import DamagedFileError

_INDEX = ".metadata"


class _Index(pickle.Unpickler):
    """Knows the classes that an index is made of, and no others: unpickling anything else could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _value_of_an_enum
        if module == kinds.__name__:
            found = getattr(kinds, name.partition(".")[0], None)
            if isinstance(found, type) and found.__module__ == module and "." not in name:
                return found
        known = (module, name) in _KNOWN
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype | torch.layout)):
            return super().find_class(module, name)
        raise DamagedFileError(f"it asks for {module}.{name}, which no index of torch's does")


def _value_of_an_enum(kind: Any, name: Any) -> Any:
    # Some Python 3.11 pickle an enum's value as a call of getattr; any other attribute would be a way to anything.
    if isinstance(kind, EnumType) and kind.__module__ == kinds.__name__ and name in kind.__members__:
        return kind[name]
    raise DamagedFileError("it asks for an attribute, which no index of torch's does")


_KNOWN = {
    (_StorageInfo.__module__, _StorageInfo.__name__),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    *(("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
}


def check_metadata(reader: StorageReader) -> None:
    """Refuse an index that is more than one, before torch unpickles it.

    Args:
        reader: Where the checkpoint is; looked at if it reads files.

    Raises:
        DamagedFileError: The index is damaged or would run code.
        FileNotFoundError: There is none.
    """
    if not isinstance(reader, FileSystemReader):
        return
    path = reader.fs.concat_path(reader.path, _INDEX)
    with reader.fs.create_stream(path, "rb") as file:
        content = file.read()
    try:
        found = _Index(io.BytesIO(content)).load()
    # Of a damaged pickle anything can be raised.
    except Exception as error:
        raise DamagedFileError(
            f"{path} is damaged, or made to do harm: {error}; it was not loaded, so resume from another checkpoint"
        ) from error
    if not isinstance(found, Metadata):
        raise DamagedFileError(f"{path} is no index of a checkpoint but {type(found).__name__}; it was not loaded")


def check_parts(reader: StorageReader, metadata: Metadata, key: str) -> None:
    """Check every archive that holds something under a key, of which torch checks none.

    Args:
        reader: Where the checkpoint is; looked at if it reads files.
        metadata: Its index.
        key: The key.

    Raises:
        DamagedFileError: One of them is damaged.
    """
    if not isinstance(reader, FileSystemReader):
        return
    try:
        for index, place in (metadata.storage_data or {}).items():
            if index.fqn.partition(".")[0] != key or place.transform_descriptors:
                continue
            path = reader.fs.concat_path(reader.path, place.relative_path)
            with reader.fs.create_stream(path, "rb") as file:
                if not 0 <= place.offset <= place.offset + place.length <= file.seek(0, io.SEEK_END):
                    raise DamagedFileError(f"{path} is not as long as its index says; it was not written to its end")
                file.seek(place.offset)
                check_archive(io.BytesIO(file.read(place.length)), str(path))
    except DamagedFileError as error:
        raise DamagedFileError(f"{error}; resume from another checkpoint") from error
    except Exception as error:
        raise DamagedFileError(
            f"{reader.path}: what its index says cannot be read ({error}); resume from another checkpoint"
        ) from error
