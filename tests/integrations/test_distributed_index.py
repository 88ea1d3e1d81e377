"""The index of a distributed checkpoint: what some Python versions pickle in it, and nothing beyond that."""

import io
import pickle
from enum import Enum

import pytest
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from latephase.errors import DamagedFileError
from latephase.integrations._distributed_files import _Index


class Asking(pickle.Pickler):
    """Pickles the values of enums as Python 3.11.2 does, and a `Please` as what it asks for."""

    def reducer_override(self, thing):
        if isinstance(thing, Please):
            return getattr, (thing.kind, thing.name)
        return (getattr, (type(thing), thing.name)) if isinstance(thing, Enum) else NotImplemented


class Please:
    def __init__(self, kind: object, name: str) -> None:
        self.kind, self.name = kind, name


def index_of(thing: object) -> object:
    file = io.BytesIO()
    Asking(file).dump(thing)
    return _Index(io.BytesIO(file.getvalue())).load()


@pytest.mark.parametrize("value", list(_MEM_FORMAT_ENCODING))
def test_values_of_enums_are_read_as_any_python_writes_them(value: Enum) -> None:
    assert index_of(value) is value
    assert _Index(io.BytesIO(pickle.dumps(value))).load() is value


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Metadata, "__init__"),
        (_MEM_FORMAT_ENCODING, "__class__"),
        (_MEM_FORMAT_ENCODING, "mro"),
        (metadata.Enum, "__init_subclass__"),
    ],
)
def test_no_other_attribute_is_given(kind: object, name: str) -> None:
    with pytest.raises(DamagedFileError, match="it asks for"):
        index_of(Please(kind, name))
