"""The members: their values parked in stacks, one of them (or their average) in the model's own tensors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .averaging import NormFold, culprits, exact_mean, fold_together, rounded, wide
from .errors import LatePhaseError
from .families import Installation
from .families._family import AverageRule
from .sharding import gathered, is_sharded, local, part_of, reshard, sharders
from .statistics import layers_with_statistics, statistics_of
from .swap import Swap

AVERAGE = -1
"""Stands for the average where otherwise a member's index says what is in the model."""


@dataclass
class Sites:
    """Every tensor of the model that the members do not share, and how each is averaged.

    Args:
        weights: late-phase weights by dotted name.
        statistics: running statistics by dotted name.
        shared: tensors that all members share and that yet differ in the averaged model: the shift of a BatchNorm of
            which only the scale is late-phase takes up the exact fold, a weight the mean of low-rank products.
        rules: averages other than the mean, each with the names it reads.
        channels: where FSDP2 shards the scale of a layer with running statistics: by the name of each statistic, which
            is on every rank as a whole, the channels of which this rank has the scale.
        sharders: the modules that FSDP2 manages.
    """

    weights: dict[str, nn.Parameter]
    statistics: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, nn.Parameter] = field(default_factory=dict)
    rules: list[tuple[tuple[str, ...], AverageRule]] = field(default_factory=list)
    channels: dict[str, Tensor] = field(default_factory=dict)
    sharders: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, installations: Iterable[Installation]) -> "Sites":
        """Collect them from a model and what the families put into it."""
        sites = cls({}, sharders=sharders(model))
        for installation in installations:
            sites.weights.update(installation.parameters)
            sites.shared.update(installation.shared)
            sites.rules.extend(installation.rules)
        late = set(sites.weights.values())
        first = {parameter: name for name, parameter in model.named_parameters()}
        for layer_name, layer in layers_with_statistics(model).items():
            dot = f"{layer_name}." if layer_name else ""
            for name, buffer in statistics_of(layer).items():
                sites.statistics[dot + name] = buffer
            weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
            fold = NormFold(
                layer.eps,
                weight=None if weight is None else first[weight],
                bias=None if bias is None else first[bias],
                mean=f"{dot}running_mean",
                var=f"{dot}running_var",
                late_scale=weight in late,
                late_shift=bias in late,
            )
            if fold.late_scale and bias is not None and not fold.late_shift:
                sites.shared[first[bias]] = bias
            if fold.late_scale and is_sharded(weight):
                whole = torch.arange(len(weight), device=weight.device)
                sites.channels |= dict.fromkeys((fold.mean, fold.var), part_of(whole, weight))
            sites.rules.append((fold.reads(), fold))
        return sites

    def renew(self, model: nn.Module, installations: Iterable[Installation]) -> None:
        """Find the running statistics anew: moving a model replaces its buffers.

        Raises:
            LatePhaseError: a late-phase weight is no longer in the model.
        """
        reshard(sharders(model))
        present = set(model.parameters())
        gone = [name for name, parameter in self.weights.items() if parameter not in present]
        if gone:
            raise LatePhaseError(
                f"{', '.join(gone[:5])}: no longer in the model, whose layers were replaced after LatePhase was "
                "attached; attach it to the model as it is now"
            )
        fresh = Sites.of(model, installations)
        self.statistics, self.shared, self.rules = fresh.statistics, fresh.shared, fresh.rules
        self.channels, self.sharders = fresh.channels, fresh.sharders

    def sharded(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The weights in whose places `fully_shard` has put sharded ones; by name what is there now."""
        reshard(sharders(model))
        now = dict(model.named_parameters(remove_duplicate=False))
        return {
            name: now[name]
            for name, weight in self.weights.items()
            if not is_sharded(weight) and name in now and is_sharded(now[name]) and now[name].shape == weight.shape
        }

    def own(self) -> dict[str, Tensor]:
        """What every member has for itself: weights, then statistics."""
        return {**self.weights, **self.statistics}


class Members:
    """K members' values, stacked (K, ...), and the model's tensors in which they take turns.

    What is in the model is `content`: a member's index, or `AVERAGE`. Only `show` changes it. The values of the member
    in the model are newer than its row of the stacks; `park` writes them there.

    Args:
        sites: the tensors in question.
        count: K.
    """

    def __init__(self, sites: Sites, count: int) -> None:
        self.sites = sites
        self.count = count
        self.content = 0
        self.graded: int | None = None
        """What was in the model at the last backward."""
        self.version = 0
        """Grows whenever other values come into the model, so that a stale graph can be told."""
        self.names = list(sites.own())
        self.live = [local(tensor.detach()) for tensor in sites.own().values()]
        self.shared = [local(tensor.detach()) for tensor in sites.shared.values()]
        # What is done to a DTensor counts as a change of it, and not of the part that is here.
        self._watched = [tensor.detach() for tensor in (*sites.own().values(), *sites.shared.values())]
        self.stacks = [tensor.unsqueeze(0).repeat(count, *(1 for _ in tensor.shape)) for tensor in self.live]
        swap = Swap(self.live)
        self._live = swap.split(self.live)
        self._rows = swap.rows(self.stacks, count)
        self._swap = swap
        self._kept: list[Tensor] = []
        self._average: list[Tensor] | None = None
        self._places = self._addresses()
        self._seen = self._expecting = self._versions()

    def _versions(self) -> tuple[int, ...]:
        # In-place operations count themselves; a BatchNorm updates its statistics uncounted, but counts its batches.
        return tuple(tensor._version for tensor in self._watched)

    def changed(self) -> None:
        """Forget the cached average: a member has other values now."""
        self._average = None

    def _addresses(self) -> list[int]:
        return [local(weight).data_ptr() for weight in self.sites.weights.values()]

    def _check_place(self) -> None:
        if self._addresses() == self._places:
            return
        for (name, weight), live in zip(self.sites.weights.items(), self.live, strict=False):
            if local(weight).data_ptr() != live.data_ptr():
                raise LatePhaseError(
                    f"{name!r} was moved or cast (to {weight.dtype} on {weight.device}) after start(); call model.to() "
                    "before start(), or save and resume"
                )

    def park(self) -> None:
        """Write the values of the member in the model to its row of the stacks."""
        self._check_place()
        if self.content != AVERAGE:
            Swap.copy(self._rows[self.content], self._live)
            if self._average is not None and self._versions() != self._seen:
                self.changed()

    def bring(self, content: int) -> None:
        """Overwrite the model's tensors with a member's parked values, or with the average."""
        reshard(self.sites.sharders)
        if content == AVERAGE:
            values = self._averages()
            if self.content != AVERAGE:
                self._kept = [tensor.clone() for tensor in self.shared]
            Swap.copy(self._live, self._swap.split(values[: len(self.live)]))
            shared = values[len(self.live) :]
        else:
            Swap.copy(self._live, self._rows[content])
            shared = self._kept if self.content == AVERAGE else []
        for tensor, value in zip(self.shared, shared, strict=False):
            tensor.copy_(value)
        if content != AVERAGE:
            self._kept = []
        self.content = content
        self.version += 1
        if self._average is not None:
            self._seen = self._versions()
        # Autocast keeps casted copies of the weights for as long as its context is open.
        torch.clear_autocast_cache()

    def show(self, content: int) -> None:
        """Bring a member or the average into the model, after parking what was there."""
        if content != self.content:
            # What was written to `.data` has left no trace but the values themselves.
            cached = self._average is not None and self.content != AVERAGE
            if cached and not Swap.equal(self._rows[self.content], self._live):
                self.changed()
            self.park()
            self.bring(content)

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite the model's tensors with given values by name; the stacks stay as they are."""
        reshard(self.sites.sharders)
        for name, tensor in zip((*self.names, *self.sites.shared), (*self.live, *self.shared), strict=True):
            tensor.copy_(values[name])

    @torch.no_grad()
    def perturb(self, sigma: float, generator: torch.Generator) -> None:
        """Add noise of standard deviation sigma times the tensor's root mean square to every member's parked weights.

        It is drawn on the CPU, so that a seed means the same members on every device and every rank.
        """
        for name, stack in zip(self.names, self.stacks, strict=True):
            if name in self.sites.weights:
                weight, precise = self.sites.weights[name], wide(stack.dtype)
                whole = gathered(weight).detach()
                scale = sigma * whole.to(precise).abs().square().mean().sqrt()
                drawn = torch.randn((self.count, *whole.shape), generator=generator, dtype=precise)
                stack.copy_(stack.to(precise) + scale * part_of(drawn.to(stack.device), weight, 1))
        self.changed()

    def expect(self) -> None:
        """Prepare for values that are about to be loaded into the model."""
        self.park()
        self._expecting = self._versions()

    @torch.no_grad()
    def replace(self) -> None:
        """Give every member the values that somebody has loaded into the model; `expect` came before that."""
        # What is loaded is written in place, also where it equals what was there; what is left out is not.
        versions = zip(self._versions(), self._expecting, strict=True)
        for stack, tensor, (now, before) in zip(self.stacks, self.live, versions, strict=False):
            if now != before:
                stack.copy_(tensor.unsqueeze(0))
        if self.content == AVERAGE:
            self._kept = [tensor.clone() for tensor in self.shared]
        self.changed()
        self.version += 1

    def refresh(self, names: Iterable[str]) -> None:
        """Copy some of the present member's parked values into the model, and leave the rest alone."""
        if self.content != AVERAGE:
            with torch.no_grad():
                for name in names:
                    index = self.names.index(name)
                    self.live[index].copy_(self.stacks[index][self.content])

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> None:
        """Take over parked values (K, ...) by name, and those of the shared tensors; member 0 comes into the model."""
        own = self.sites.own()
        for name, stack in zip(self.names, self.stacks, strict=True):
            stack.copy_(part_of(values[name], own[name], 1))
        for name, tensor in zip(self.sites.shared, self.shared, strict=True):
            tensor.copy_(part_of(shared[name], self.sites.shared[name]))
        self.changed()
        self.content = 0
        self.bring(0)

    def statistics(self, member: int) -> list[Tensor]:
        """A member's parked running statistics."""
        weights = len(self.sites.weights)
        return [stack[member] for stack in self.stacks[weights:]]

    def shared_values(self) -> dict[str, Tensor]:
        """The shared tensors by name as the members have them, also while the average is in the model."""
        values = self._kept if self.content == AVERAGE else self.shared
        return dict(zip(self.sites.shared, values, strict=True))

    def average(self, fold: bool = True) -> dict[str, Tensor]:
        """The averaged values by name: of the members' own tensors, then of the shared ones.

        Args:
            fold: average normalisation layers exactly, rather than by the plain mean of their tensors.
        """
        self.park()
        values = self._averages() if fold else self._compute(fold=False)
        return dict(zip((*self.names, *self.sites.shared), values, strict=True))

    def check_finite(self, averages: Mapping[str, Tensor]) -> None:
        """Refuse an average that members spoil.

        Raises:
            LatePhaseError: a tensor is NaN or infinite in some member; it names both.
        """
        if self.sites.sharders:
            return  # a rank sees its part alone, and all must decide alike
        for name, stack in zip(self.names, self.stacks, strict=True):
            if stack.is_floating_point() and (members := culprits(stack, averages[name])):
                raise LatePhaseError(
                    f"collapse(): {name!r} is NaN or infinite in member(s) "
                    f"{', '.join(map(str, members))} of {self.count}, and so would the average be; nothing was "
                    "changed. Resume from a state saved before (late.load_state_dict), with a smaller learning rate"
                )

    def _averages(self) -> list[Tensor]:
        if self._average is None:
            self._average = self._compute(fold=True)
            self._seen = self._versions()
        return self._average

    def _compute(self, fold: bool) -> list[Tensor]:
        # The cache outlives the caller's inference mode, and an inference tensor could not be brought in later.
        with torch.inference_mode(False), torch.no_grad():
            stacks = dict(zip(self.names, self.stacks, strict=True))
            whole = stacks | {name: value.clone().unsqueeze(0) for name, value in self.shared_values().items()}
            averages: dict[str, Tensor] = {}
            folds = [rule for _, rule in self.sites.rules if isinstance(rule, NormFold)]
            if fold:
                # Where this rank has a part of the scales, the fold takes the statistics of these channels alone; the
                # statistics themselves have their plain mean.
                part = {name: whole[name][:, channels] for name, channels in self.sites.channels.items()}
                folded = fold_together(folds, whole | part)
                averages.update({name: mean for name, mean in folded.items() if name not in part})
            for reads, rule in self.sites.rules:
                if not isinstance(rule, NormFold):
                    averages.update(rule({name: whole[name] for name in reads}))
            for name, stack in whole.items():
                mean = averages[name] if name in averages else exact_mean(stack)
                averages[name] = rounded(mean, stack)
            return [averages[name] for name in whole]
