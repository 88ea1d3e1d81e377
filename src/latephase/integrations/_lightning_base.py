"""How a callback gets into Lightning: under which of its two names, and at which moment it meets the whole module."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def callback_classes() -> list[type]:
    """The Callback classes of the packages that are imported; of the first one that is installed if none is.

    Each package accepts callbacks of its own class alone.

    Raises:
        ModuleNotFoundError: none is installed.
    """
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


def when_complete(module: Any, then: Callable[[nn.Module], None]) -> Callable[[], None]:
    """Call something when the module has all its layers, and before the strategy wraps it.

    Layers may come as late as in `configure_model`, and no callback is called between that and the strategy.

    Args:
        module: the user's LightningModule.
        then: is called once with the module, right behind its `configure_model`.

    Returns:
        What undoes it before that.
    """
    own, configure = module.__dict__.get("configure_model"), module.configure_model

    def undo() -> None:
        module.__dict__.pop("configure_model", None)
        if own is not None:
            module.__dict__["configure_model"] = own

    def configure_model() -> None:
        undo()
        configure()
        then(module)

    module.__dict__["configure_model"] = configure_model
    return undo
