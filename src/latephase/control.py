"""The phase's hooks on the model: what `train()`, `eval()`, `state_dict()`, deepcopy and backward see.

Each hook is a small object that knows how to be copied: a copy of the model is an ordinary model, and no phase
controls it.
"""

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from .errors import LatePhaseError
from .members import Members
from .sharding import placed


def _inert(*_: Any) -> None:
    """What a hook becomes in a copy of the model."""


def _make_inert() -> Callable[..., None]:
    return _inert


class _Hook:
    """A hook that a deepcopy or a pickle of the model leaves behind."""

    def __deepcopy__(self, _: dict[int, Any]) -> Callable[..., None]:
        return _inert

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_inert, ()


class TrainMode:
    """Stands in for the model's `train` method: first the method itself, then the change of what is in the model.

    `eval()` is `train(False)`, and a parent's `train` calls its children's: every way into another mode passes here,
    except setting `training` by hand.
    """

    members_share_the_model = True

    def __init__(self, model: nn.Module, members: Members, settle: Callable[[], None]) -> None:
        self.model, self.members, self.settle = model, members, settle
        self.before = model.__dict__.get("train")

    def __call__(self, mode: bool = True) -> nn.Module:
        """`nn.Module.train`."""
        if self.before is None:
            type(self.model).train(self.model, mode)
        else:
            self.before(mode)
        self.settle()
        return self.model

    def install(self) -> None:
        """Shadow the method on this one object; the class stays as it is."""
        self.model.__dict__["train"] = self

    def remove(self) -> None:
        """Undo `install`."""
        if self.before is None:
            self.model.__dict__.pop("train", None)
        else:
            self.model.__dict__["train"] = self.before

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # An object's attributes are copied in order and this one came last: all tensors of the copy are there.
        copy = memo[id(self.model)]
        averages = self.members.average()
        with torch.no_grad():
            for name, tensor in {**self.members.sites.own(), **self.members.sites.shared}.items():
                if id(tensor) in memo:
                    memo[id(tensor)].copy_(averages[name])
        return MethodType(type(copy).train, copy)

    def __reduce__(self) -> tuple[Any, ...]:
        tensors = {**self.members.sites.own(), **self.members.sites.shared}
        averages = self.members.average()
        return _unpickled, (self.model, list(tensors.values()), [averages[name] for name in tensors])


def _unpickled(model: nn.Module, tensors: list[Tensor], averages: list[Tensor]) -> Any:
    """The `train` of an unpickled model: the plain method, after its tensors have become the averages."""
    with torch.no_grad():
        for tensor, average in zip(tensors, averages, strict=True):
            tensor.copy_(average)
    return MethodType(type(model).train, model)


class AveragedState(_Hook):
    """State-dict hook of one module: its own late-phase tensors appear averaged, whatever is in the model."""

    def __init__(self, members: Members, names: dict[str, str]) -> None:
        self.members, self.names = members, names

    def __call__(self, _: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        """Put the averages where the module has just saved its own."""
        averages = self.members.average()
        for own, name in self.names.items():
            # Buffers that are not persistent are in no state dict.
            if prefix + own in state:
                state[prefix + own] = placed(averages[name].clone(), state[prefix + own])


class Loading(_Hook):
    """Load hook of the model: tells the phase that other weights are about to come."""

    def __init__(self, loading: Callable[[], None]) -> None:
        self.loading = loading

    def __call__(self, *_: Any) -> None:
        """Pass it on."""
        self.loading()


class Loaded(_Hook):
    """Load hook of the model: tells the phase that other weights are in it now."""

    def __init__(self, loaded: Callable[[], None]) -> None:
        self.loaded = loaded

    def __call__(self, *_: Any) -> None:
        """Pass it on."""
        self.loaded()


class BackwardGuard(_Hook):
    """Forward hook of the model: a backward after the member changed fails before it reaches a weight.

    Autograd's own version check catches a changed weight that the graph saved; it cannot see a shift, which no
    gradient needs, or a checkpointed block, which would be recomputed with another member.
    """

    def __init__(self, members: Members) -> None:
        self.members = members
        self.off = False

    def __call__(self, _: nn.Module, __: Any, output: Any) -> None:
        """Hang a check on every output tensor."""
        # Compiled graphs save their inputs, so that the version check covers them; a guard would recompile.
        if self.off or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        version = self.members.version

        def check(_: Tensor) -> None:
            if self.members.version != version:
                raise LatePhaseError(
                    "backward() of a forward pass whose member is no longer in the model: call it before "
                    "optimizer.step(), eval(), or the end of late.member(k) brings in other weights"
                )
            self.members.graded = self.members.content

        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(check)


def _owned(model: nn.Module, tensors: dict[str, Tensor]) -> Iterator[tuple[nn.Module, dict[str, str]]]:
    names = {id(tensor): name for name, tensor in tensors.items()}
    for module in model.modules():
        own = {**module._parameters, **module._buffers}
        found = {n: names[id(t)] for n, t in own.items() if t is not None and id(t) in names}
        if found:
            yield module, found


class Control:
    """All hooks of one phase on one model.

    Args:
        model: the user's model.
        members: its members.
        settle: brings in what belongs into the model in its present mode.
    """

    def __init__(self, model: nn.Module, members: Members, settle: Callable[[], None]) -> None:
        self.guard = BackwardGuard(members)
        self._train = TrainMode(model, members, settle)
        self._train.install()
        self._handles: list[RemovableHandle] = [
            model.register_forward_hook(self.guard),
        ]
        for module, names in _owned(model, {**members.sites.own(), **members.sites.shared}):
            self._handles.append(module.register_state_dict_post_hook(AveragedState(members, names)))

    def remove(self) -> None:
        """Leave no trace on the model."""
        self._train.remove()
        for handle in self._handles:
            handle.remove()
