"""Image parquet files in the Hugging Face layout: a column of {bytes, path} structs and a column of labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from latephase.experiments.config import Data
from latephase.experiments.data.encoded import InMemory, decode
from latephase.experiments.data.images import Images, stack_images
from latephase.experiments.errors import ExperimentError

# Bytes that a file may unpack to; all of it is kept in memory.
_LIMIT = 16 * 2**30


def load(data: Data) -> tuple[Images, Images | None]:
    """Read one file of training images and one of test images.

    Args:
        data: `train` and, if there is one, `test` are the files.

    Returns:
        The images of the two files; None for a test file that was not named.

    Raises:
        ExperimentError: If a file is missing, truncated or of another layout, or the classes of the two differ.
    """
    if data.train is None:
        raise ExperimentError("data.name = parquet needs data.train, the file of training images")
    train = read(data.train)
    test = None if data.test is None else read(data.test, classes=train.classes)
    return train, test


def read(path: str, classes: tuple[str, ...] | None = None) -> Images:
    """Read one file.

    Args:
        path: A parquet file with a column of structs with a field `bytes` (any image format, converted to RGB)
            and an integer column `label`, `labels`, `fine_label` or `target`.
        classes: The classes that the labels mean; by default those in the file's Hugging Face metadata, or as
            many as its largest label asks for.

    Returns:
        The images.

    Raises:
        ExperimentError: If the file is missing, truncated or of another layout.
    """
    if not Path(path).is_file():
        raise ExperimentError(f"there is no data file {path}")
    try:
        check_size(path)
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ExperimentError(f"cannot read {path} as parquet; it may be truncated ({reason})") from error
    image = _column(table.schema, path, "images", lambda f: pa.types.is_struct(f.type) and "bytes" in _fields(f))
    names = ("label", "labels", "fine_label", "target")
    label = _column(table.schema, path, "labels", lambda f: f.name in names and pa.types.is_integer(f.type))
    labels = table[label].to_numpy()
    arrays = [_decode(raw, path, row) for row, raw in enumerate(_bytes_of(table, image))]
    known = classes or _class_names(table.schema, label)
    found = known or tuple(str(i) for i in range(int(labels.max(initial=0)) + 1))
    return Images(stack_images(arrays, path), torch.from_numpy(labels.astype(np.int64)), found, path)


def _fields(field: pa.Field) -> list[str]:
    return [field.type.field(i).name for i in range(field.type.num_fields)]


def _column(schema: pa.Schema, path: str, what: str, fits: Callable[[pa.Field], bool]) -> str:
    for field in schema:
        if fits(field):
            return str(field.name)
    columns = ", ".join(f"{f.name} ({f.type})" for f in schema)
    raise ExperimentError(f"{path} has no column of {what} in the Hugging Face layout; its columns are {columns}")


def _bytes_of(table: pa.Table, column: str) -> list[bytes | None]:
    return table[column].combine_chunks().field("bytes").to_pylist()


def _decode(raw: bytes | None, path: str, row: int) -> np.ndarray:
    if raw is None:
        raise ExperimentError(f"{path} holds no bytes for the image in row {row}")
    return np.asarray(decode(InMemory(f"in row {row} of {path}", raw)))


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    try:
        names = json.loads(metadata)["info"]["features"][label]["names"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def check_size(path: str) -> None:
    """Refuse a file that unpacks to more than fits, by what it says of itself.

    Args:
        path: The parquet file.

    Raises:
        ExperimentError: If it claims too much.
        OSError: If it cannot be read; pyarrow's own errors too.
    """
    metadata = pq.read_metadata(path)
    claimed = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if claimed > _LIMIT or metadata.num_rows > _LIMIT:
        raise ExperimentError(
            f"{path} claims to unpack to {claimed:,} bytes in {metadata.num_rows:,} rows, over {_LIMIT:,}; split it"
        )
