"""Which Lightning it is: `lightning.pytorch` and `pytorch_lightning` each accept callbacks of their own class alone."""

import importlib
import importlib.util
import sys
from typing import Any

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def callback_classes() -> list[type]:
    """The Callback classes of the packages that are imported; of the first one that is installed if none is."""
    names = [name for name in PACKAGES if name in sys.modules]
    if not names:
        names = [name for name in PACKAGES if importlib.util.find_spec(name.partition(".")[0])][:1]
    if not names:
        raise ModuleNotFoundError("latephase.integrations.lightning needs Lightning; pip install lightning")
    return [importlib.import_module(f"{name}.callbacks").Callback for name in names]


TYPES: dict[tuple[type, ...], type] = {}
"""Classes that were made with the bases of several packages."""


def on_top_of(cls: type, others: tuple[type, ...]) -> Any:
    """The same class with more bases; its name is that under which checkpoints know it."""
    if (cls, *others) not in TYPES:
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        TYPES[cls, *others] = type(cls.__name__, (cls, *others), names)
    return TYPES[cls, *others]
