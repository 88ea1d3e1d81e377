"""All members in one pass: `torch.vmap` over the parked stacks, each member on its share of the batch."""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from .errors import LatePhaseError, LatePhaseValueError
from .grouped_norm import GroupedNorm
from .members import Members

if TYPE_CHECKING:
    from .steps import Steps

_NO_RULE = re.compile(r"Batching rule not implemented for (\S+?)\.? ")


def split(tree: Any, members: int) -> Any:
    """Every tensor (K*B, ...) of a tree as (K, B, ...)."""

    def part(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        size = leaf.shape[0] if leaf.ndim else 0
        if size == 0 or size % members:
            raise LatePhaseValueError(
                f"parallel: a batch of {size} samples cannot be split into {members} equal minibatches; use a multiple "
                f"of {members} (drop_last=True in a DataLoader)"
            )
        return leaf.reshape(members, size // members, *leaf.shape[1:])

    return tree_map(part, tree)


def _batchable_attention(device: torch.device) -> AbstractContextManager[None]:
    # vmap has no rule for the CPU's fused attention and would loop over the members; the plain form it can batch.
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _owners(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """Where the weights lie: the name of each by the path of every module that owns it.

    `functional_call` can tie weights by itself, but not where a module is reached by two paths: it would swap twice,
    and leave the second swap's values behind.
    """
    names = {weight: name for name, weight in weights.items()}
    return {
        f"{path}.{own}" if path else own: names[weight]
        for path, module in model.named_modules()
        for own, weight in module._parameters.items()
        if weight in names
    }


class Stacks:
    """The members' stacks as leaves of the autograd graph, made once a phase.

    Args:
        model: the user's model.
        members: its members.
    """

    def __init__(self, model: nn.Module, members: Members) -> None:
        self.model, self.members = model, members
        of = dict(zip(members.names, members.stacks, strict=True))
        self.live = members.sites.weights
        self.weights = {
            name: nn.Parameter(of[name], requires_grad=live.requires_grad) for name, live in self.live.items()
        }
        self.buffers = {name: of[name] for name in members.sites.statistics}
        self.rows = {
            live: [nn.Parameter(row, requires_grad=live.requires_grad) for row in of[name].unbind()]
            for name, live in self.live.items()
        }
        """Every member's own weights as parameters, for an optimizer to step all in one call."""
        self.owners = _owners(model, self.live)
        self.compiled: Callable[..., Any] | None = None
        # A cumulative average (momentum=None) divides by its count, a number that all members must share.
        self.counts = {
            f"{name}.num_batches_tracked" if name else "num_batches_tracked"
            for name, module in model.named_modules()
            if getattr(module, "momentum", 0.1) is None
        } & set(self.buffers)

    def compile(self, options: Mapping[str, Any]) -> None:
        """Compile the pass."""
        self.compiled = torch.compile(self._vectorised, **options)

    def _shared_counts(self) -> dict[str, Tensor]:
        counts = {}
        for name in self.counts:
            values = self.buffers[name]
            if not bool((values == values[0]).all()):
                raise LatePhaseError(
                    f"parallel: {name!r} differs between members ({values.tolist()}), and a layer with momentum=None "
                    "needs one count for all; use the loop"
                )
            counts[name] = values[0].clone()
        return counts

    def _vectorised(
        self, weights: Mapping[str, Tensor], stacked: dict[str, Tensor], counts: dict[str, Tensor], inputs: Any
    ) -> Any:
        def one(own: Mapping[str, Tensor], buffers: dict[str, Tensor], tree: Any) -> Any:
            args, kwargs = tree
            tied = {path: own[name] for path, name in self.owners.items()}
            return functional_call(self.model, {**tied, **buffers, **counts}, args, kwargs, tie_weights=False)

        in_dims = (0, 0, tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, inputs))
        return torch.vmap(one, in_dims=in_dims, randomness="different")(weights, stacked, inputs)

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Outputs (K*B, ...) of members on their shares; the stacks' running statistics move as in training."""
        members = self.members
        inputs = split((args, kwargs), members.count)
        members.park()
        members.changed()
        counts = self._shared_counts()
        stacked = {name: value for name, value in self.buffers.items() if name not in counts}
        # A compiler fuses the BatchNorm that vmap writes down; kernel by kernel it would take too much memory.
        norms = nullcontext() if self.compiled else GroupedNorm()
        try:
            with _batchable_attention(members.stacks[0].device), norms:
                outputs = (self.compiled or self._vectorised)(self.weights, stacked, counts, inputs)
        except BaseException as error:
            # A pass that fails has moved the statistics of the layers before that, as one of plain training has.
            members.refresh(self.buffers)
            missing = _NO_RULE.search(str(error)) if isinstance(error, RuntimeError) else None
            if missing is None:
                raise
            raise LatePhaseError(
                f"parallel: torch.vmap cannot run {missing[1]} for several members at once (nor any of torch's "
                "recurrent kernels); use the loop, which needs no parallel()"
            ) from error
        with torch.no_grad():
            for name, count in counts.items():
                self.buffers[name].copy_(count)
        # The member in the model has moved statistics too; its weights are those of its row already.
        members.refresh(self.buffers)
        return tree_map(lambda leaf: leaf.flatten(0, 1), outputs)


class ParallelPass:
    """One forward pass of all members, from the pass to the optimizer's step.

    Args:
        stacks: the stacks as leaves.
        factor: what turns the gradients of the loss over all samples into the members' own: K for a mean, 1 for a sum.
    """

    def __init__(self, stacks: Stacks, factor: float) -> None:
        self.stacks, self.factor = stacks, factor
        self.has_gradients = False
        self._names = {live: name for name, live in stacks.live.items()}
        self._marks: dict[str, tuple[Tensor, Tensor]] = {}
        for leaf in stacks.weights.values():
            leaf.grad = None
        self._handles = [
            leaf.register_post_accumulate_grad_hook(self._mark(name))
            for name, leaf in stacks.weights.items()
            if leaf.requires_grad
        ]

    def _mark(self, name: str) -> Callable[[Tensor], None]:
        """Lets the model's own parameter show that there are gradients, so that zero_grad() and scalers find them."""

        def mark(leaf: Tensor) -> None:
            assert leaf.grad is not None
            shown = leaf.grad[self.stacks.members.content].clone()
            # A copy to compare with: the leaf's own gradient is still to be averaged over processes under DDP.
            self._marks[name] = shown, shown.clone()
            self.stacks.live[name].grad = shown
            self.has_gradients = True

        return mark

    def close(self) -> None:
        """Take the hooks off the leaves and let the gradients go."""
        for handle in self._handles:
            handle.remove()
        for leaf in self.stacks.weights.values():
            leaf.grad = None

    @property
    def dropped(self) -> bool:
        """Whether zero_grad() has discarded this pass's gradients."""
        return self.has_gradients and all(self.stacks.live[name].grad is None for name in self._marks)

    def _check_scale(self, steps: "Steps") -> None:
        if getattr(steps.optimizer, "grad_scale", None) is not None or self._rescaled(steps.late):
            raise LatePhaseError(
                "parallel: gradients were changed between backward and step (by a GradScaler, clipping, or zeroing in "
                "place), which would reach one member only; use bfloat16 without a scaler, or the loop"
            )

    def _rescaled(self, late: list[nn.Parameter]) -> bool:
        """Whether gradients are no longer those of the backward; a scaler's change leaves no trace but the values."""
        marks = [(live, *self._marks[name]) for live in late if (name := self._names[live]) in self._marks]
        if any(live.grad is not shown for live, shown, _ in marks):
            return True
        kinds: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for _, shown, copy in marks:
            now, then = kinds.setdefault((shown.device, shown.dtype), ([], []))
            now.append(shown.flatten())
            then.append(copy.flatten())
        # One comparison for all, since each makes the device wait.
        return not all(torch.allclose(torch.cat(now), torch.cat(then), 0.0, 0.0, True) for now, then in kinds.values())

    def _gradient(self, live: nn.Parameter) -> Tensor:
        gradient = self.stacks.weights[self._names[live]].grad
        assert gradient is not None
        return gradient

    def replay(self, steps: "Steps") -> None:
        """Step the members with their own gradients, through the optimizer's own `step`.

        Torch's own optimizers take every member's weights as parameters beside each other, and step them in one call.
        Others may know a parameter by its identity: they get the model's own, one member after the other, and the last
        member's gradients are left in place.

        Raises:
            LatePhaseError: the gradients were rescaled after the backward.
        """
        self._check_scale(steps)
        late = [live for live in steps.late if self.stacks.weights[self._names[live]].grad is not None]
        if type(steps.optimizer).__module__.startswith("torch.optim."):
            self._step_together(steps, late)
        else:
            self._step_in_turn(steps)
        base = [(parameter, gradient) for parameter in steps.base if (gradient := parameter.grad) is not None]
        scaled = torch._foreach_mul([gradient for _, gradient in base], self.factor) if base else ()
        for (parameter, _), gradient in zip(base, scaled, strict=True):
            parameter.grad = gradient

    def _step_together(self, steps: "Steps", late: list[nn.Parameter]) -> None:
        members, last = self.stacks.members, self.stacks.members.count - 1
        rows = {live: self.stacks.rows[live] for live in late}
        scaled = torch._foreach_mul([self._gradient(live) for live in late], self.factor) if late else ()
        for live, gradient in zip(late, scaled, strict=True):
            live.grad = None
            for row, its in zip(rows[live], gradient.unbind(), strict=True):
                row.grad = its
        steps.step_members(rows)
        for each in rows.values():
            for row in each:
                row.grad = None
        members.changed()
        steps.bring(last)
        members.bring(last)

    def _step_in_turn(self, steps: "Steps") -> None:
        members, last = self.stacks.members, self.stacks.members.count - 1
        for member in range(members.count):
            if member > 0:
                steps.bring(member)
            members.show(member)
            for live in steps.late:
                gradient = self.stacks.weights[self._names[live]].grad
                live.grad = None if gradient is None else gradient[member] * self.factor
            if member < last:
                steps.step_late()
                steps.park(member)


class ParallelModule(nn.Module):
    """`late.parallel` as a module, for wrappers such as DistributedDataParallel to take hold of.

    Its parameters are the base weights and the members' stacks; one forward is a parallel pass.

    Args:
        parallel: the phase's `parallel`.
        stacks: the stacks as leaves.
    """

    def __init__(self, parallel: Callable[..., Any], stacks: Stacks) -> None:
        super().__init__()
        self.model = stacks.model
        self.stacks = nn.ParameterList(stacks.weights.values())
        self._parallel = parallel
        # The model's own late-phase tensors take no part in a parallel pass, and statistics are each member's.
        ours = [f"model.{name}" for name in (*stacks.live, *dict(stacks.model.named_buffers()))]
        self._ddp_params_and_buffers_to_ignore = ours

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs of all members, in the order of the batch."""
        return self._parallel(*args, **kwargs)
