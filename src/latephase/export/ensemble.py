"""The members of a late phase as one module: what they share once, what is their own stacked, one vectorised pass."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from latephase import Family, LatePhase
from latephase.arguments import choice
from latephase.errors import LatePhaseValueError
from latephase.export.outputs import logits_of
from latephase.parallel import _batchable_attention
from latephase.statistics import layers_with_statistics, statistics_of

_log = logging.getLogger(__name__)

_CANNOT = re.compile(r"vmap|[Bb]atching rule")

OUTPUTS = ("members", "probabilities")


class Ensemble(nn.Module):
    """K members as one module: the outputs of all for one batch, in one pass.

    The module stands alone: it holds copies of the tensors that the members share, once, under `shared.`, and of each
    member's own (late-phase weights, factors of them, running statistics), stacked, under `members.`. Making it leaves
    model and phase as they were, and what becomes of them does not change it. Its forward is always the model's in
    eval mode. It goes where any module goes: a state dict, `torch.export`, ONNX.

    The pass is `torch.vmap` of the model over the stacks. Where that cannot run (recurrent kernels, control flow that
    depends on values) the members follow one another instead; `vectorised` says which.

    Args:
        late: A late phase that has started and has not been collapsed.
        output: "members" returns the model's outputs with a new first dimension, as `late.predict` does;
            "probabilities" the mean over members of the softmax of the logits over their last dimension.
        vectorised: False takes the members one after the other.

    Raises:
        LatePhaseError: Before `start()` or after `collapse()`.
        LatePhaseValueError: Another `output`, or tensors that are sharded over processes.

    Example:
        >>> import latephase
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> late = latephase.LatePhase(model, members=5, noise=0.1)
        >>> _ = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> late.start()
        >>> x = torch.randn(7, 3)
        >>> Ensemble(late)(x).shape
        torch.Size([5, 7, 2])
        >>> Ensemble(late, output="probabilities")(x).shape
        torch.Size([7, 2])
        >>> {name: tuple(t.shape) for name, t in Ensemble(late).state_dict().items() if "0." in name or "2.w" in name}
        {'shared.0.weight': (4, 3), 'shared.0.bias': (4,), 'members.2.weight': (5, 2, 4)}
    """

    def __init__(self, late: LatePhase, output: str = "members", vectorised: bool = True) -> None:
        super().__init__()
        self.output = choice("output", output, OUTPUTS)
        self.size = late.members
        """K."""
        shared, own = _tensors(late)
        skeleton = _skeleton(late.model)
        # In a tuple, so that it is no submodule: its tensors are empty, ours are put in their places for each call.
        self._skeleton = (skeleton,)
        self._places = _places(skeleton)
        self.shared, self.members = _Branch(), _Branch()
        parameters = dict(late.model.named_parameters())
        saved = set(late.model.state_dict())
        for branch, tensors in ((self.shared, shared), (self.members, own)):
            for name, tensor in tensors.items():
                branch.plant(name, tensor, name in parameters, name in saved)
        recurrent = any(isinstance(module, nn.RNNBase) for module in skeleton.modules())
        self.vectorised = vectorised and not recurrent
        """Whether all members go through the model in one pass."""

    @classmethod
    def blank(
        cls,
        model: nn.Module,
        members: int = 10,
        weights: str | Family | Iterable[str | Family] = ("norm", "head"),
        output: str = "members",
    ) -> Ensemble:
        """An ensemble whose members are all a given model, to load a saved state dict into.

        Args:
            model: The plain model; it is copied, and stays as it is.
            members: K, as it was for the ensemble that was saved.
            weights: Which weights the members have of their own, as it was.
            output: See `Ensemble`.

        Returns:
            The ensemble; `load_state_dict` makes it the one that was saved.

        Raises:
            LatePhaseValueError: An argument that `LatePhase` refuses.
        """
        twin = copy.deepcopy(model)
        late = LatePhase(twin, members=members, weights=weights)
        late.optimizer(torch.optim.SGD(twin.parameters(), lr=0.0))
        late.start()
        return cls(late, output)

    @contextmanager
    def one_after_the_other(self) -> Iterator[None]:
        """Context in which the members follow one another, also where one pass could take all.

        Yields:
            Nothing.
        """
        before, self.vectorised = self.vectorised, False
        try:
            yield
        finally:
            self.vectorised = before

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs of all members for one batch.

        Args:
            args: The model's inputs.
            kwargs: The model's keyword inputs.

        Returns:
            The model's outputs with a new first dimension, (K, N, ...), or (N, ..., classes) for "probabilities".
        """
        outputs = self._forward(args, kwargs)
        if self.output == "members":
            return outputs
        logits = logits_of(outputs)
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return precise.softmax(-1).mean(0).to(logits.dtype)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.vectorised:
            try:
                return self._together(args, kwargs)
            except RuntimeError as error:
                if not _CANNOT.search(str(error)):
                    raise
                reason = str(error).strip().splitlines()[0]
                _log.warning("the members of this ensemble follow one another, since vmap cannot run them: %s", reason)
                self.vectorised = False
        return self._in_turn(args, kwargs)

    def _together(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        shared, own = self.shared.tensors(), self.members.tensors()
        made: list[tuple[list[Any], TreeSpec]] = []

        def one(member: Mapping[str, Tensor]) -> list[Tensor]:
            leaves, spec = tree_flatten(self._call({**shared, **member}, args, kwargs))
            made.append((leaves, spec))
            return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        device = next(iter(own.values())).device
        with _batchable_attention(device), _without_fused_layers():
            stacked = iter(torch.vmap(one, randomness="different")(own))
        leaves, spec = made[-1]
        return tree_unflatten([next(stacked) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    def _in_turn(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        shared, own = self.shared.tensors(), self.members.tensors()
        each = [
            self._call({**shared, **{name: stack[k] for name, stack in own.items()}}, args, kwargs)
            for k in range(self.size)
        ]
        return tree_map(lambda *leaves: torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *each)

    def _call(self, tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        placed = {place: tensors[name] for place, name in self._places.items()}
        return functional_call(self._skeleton[0], placed, args, kwargs, tie_weights=False)

    def extra_repr(self) -> str:
        """What `print` shows beside the tensors."""
        way = "in one pass" if self.vectorised else "one after the other"
        return f"{self.size} members of {type(self._skeleton[0]).__name__}, {way}, output={self.output!r}"


@contextmanager
def _without_fused_layers() -> Iterator[None]:
    """nn.TransformerEncoderLayer and its kin as the operators they consist of; vmap would loop over the fused ones."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Branch(nn.Module):
    """Tensors under dotted names, which a single module cannot have."""

    def plant(self, name: str, tensor: Tensor, is_parameter: bool, persistent: bool) -> None:
        """Register a tensor, and the branches on the way to it."""
        branch, (*path, own) = self, name.split(".")
        for part in path:
            if part not in branch._modules:
                branch.add_module(part, _Branch())
            branch = branch.get_submodule(part)  # type: ignore[assignment]
        if is_parameter:
            branch.register_parameter(own, nn.Parameter(tensor, requires_grad=False))
        else:
            branch.register_buffer(own, tensor, persistent)

    def tensors(self) -> dict[str, Tensor]:
        """All of them by dotted name."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}


def _tensors(late: LatePhase) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of what the members share, and of what is each one's own, stacked; by the first name of each tensor."""
    own = set(late.late_names())
    for layer, module in layers_with_statistics(late.model).items():
        own.update(f"{layer}.{name}" if layer else name for name in statistics_of(module))
    shared: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {}
    for k in range(late.members):
        with late.member(k) as model:
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if hasattr(tensor, "full_tensor"):
                    raise LatePhaseValueError(
                        f"Ensemble: {name!r} is sharded over processes; load late.averaged_state_dict() and "
                        "late.state_dict() into a model on one process first"
                    )
                if name in own:
                    rows.setdefault(name, []).append(tensor.detach().clone())
                elif k == 0:
                    shared[name] = tensor.detach().clone()
    return shared, {name: torch.stack(tensors) for name, tensors in rows.items()}


def _skeleton(model: nn.Module) -> nn.Module:
    """A copy of a model without its tensors: parameters and buffers are empty ones on the meta device."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    skeleton: nn.Module = copy.deepcopy(model, memo)
    for module in skeleton.modules():
        if is_parametrized(module):
            # A copy has the class of its original, from which a collapse takes the weights' properties away.
            made = type(module)
            module.__class__ = type(made.__name__, made.__bases__, dict(vars(made)))
    return skeleton.eval()


def _places(model: nn.Module) -> dict[str, str]:
    """Every place where a module holds a tensor, and the first name of the tensor: tied ones have several places."""
    first: dict[int, str] = {}
    places: dict[str, str] = {}
    for path, module in model.named_modules():
        for own, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                place = f"{path}.{own}" if path else own
                places[place] = first.setdefault(id(tensor), place)
    return places
