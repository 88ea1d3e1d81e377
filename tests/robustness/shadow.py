"""The same training in the hands of `latephase.reference`, for as long as that can follow."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import latephase
from latephase.reference import Reference


class Shadow:
    """Algorithm 1 as it is written, beside the phase under test.

    Args:
        late: the phase, not started.
        optimizers: its optimizers.
        gamma: the argument `base_gradient`.
        optimizer_state: the argument of that name.
        in_place: whether base gradients cannot be dropped any more after their backward.
    """

    def __init__(
        self,
        late: latephase.LatePhase,
        optimizers: list[Optimizer],
        gamma: str | float,
        optimizer_state: str,
        in_place: bool,
    ) -> None:
        model = copy.deepcopy(late.model)
        for parameter in model.parameters():
            parameter.grad = None
        names = {parameter: name for name, parameter in late.model.named_parameters()}
        mine = dict(model.named_parameters())
        clocks = []
        for theirs in optimizers:
            groups = [{**group, "params": [mine[names[p]] for p in group["params"]]} for group in theirs.param_groups]
            clocks.append(type(theirs)(groups))
            for parameter, state in theirs.state.items():
                clocks[-1].state[mine[names[parameter]]] = copy.deepcopy(state)
        self.of = [[names[p] for group in theirs.param_groups for p in group["params"]] for theirs in optimizers]
        late_names, count = late.late_names(), late.members
        self.judge = Reference(model, clocks, late_names, count, base_gradient=gamma, optimizer_state=optimizer_state)
        self.in_place = in_place
        self.due: dict[str, Tensor] = {}
        """The gradients of the present turn with which optimizers have stepped already."""

    @property
    def started(self) -> bool:
        """Whether there are members."""
        return bool(self.judge.members)

    @property
    def models(self) -> list[nn.Module]:
        """All models that there are."""
        return [self.judge.model, *self.judge.members]

    def model(self, member: int | None = None) -> nn.Module:
        """A member, by default that of the turn; before the start the model."""
        if not self.started:
            return self.judge.model
        return self.judge.members[self.judge.turn if member is None else member]

    def start(self, drawn: list[dict[str, Tensor]] | None) -> None:
        """Bring the members to life, equal, or with values where noise was drawn for the phase under test."""
        gradients = {name: p.grad for name, p in self.judge.model.named_parameters()}
        self.judge.start()
        for name, parameter in self.model().named_parameters():
            parameter.grad = gradients[name]
        for member, values in zip(self.judge.members, drawn or (), strict=False):
            for name in self.judge.late:
                member.get_parameter(name).data.copy_(values[name])

    def zero_grad(self) -> None:
        """Drop gradients, where that is still possible."""
        for name, parameter in self.model().named_parameters():
            if not (self.in_place and self.started and name not in self.judge.late):
                parameter.grad = None

    def collect(self, index: int, present: Iterable[str]) -> None:
        """One optimizer steps, with the gradients of those parameters that have one."""
        gathered = self.in_place and self.started
        for name in self.of[index]:
            parameter = self.model().get_parameter(name)
            base = gathered and name not in self.judge.late
            if name in present or (base and parameter.grad is not None):
                self.due[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            if base:
                parameter.grad = None

    def turn(self) -> None:
        """All optimizers have stepped: the turn of the reference, with the gradients that they had."""
        due, self.due = self.due, {}
        if not due:
            return

        def exactly(model: nn.Module) -> Tensor:
            return sum((model.get_parameter(name) * gradient).sum() for name, gradient in due.items())

        model = self.model()
        self.judge.step(exactly)
        for parameter in (*model.parameters(), *self.judge.model.parameters()):
            parameter.grad = None

    def each(self, act: Callable[[nn.Module], object]) -> None:
        """The same with every model."""
        for model in self.models:
            act(model)

    def copy(self) -> "Shadow":
        """Another one, from here on by itself."""
        other = copy.deepcopy(self)
        for mine, its in zip(self.models, other.models, strict=True):
            for parameter, twin in zip(mine.parameters(), its.parameters(), strict=True):
                # A copy of a Parameter has no gradient, and gathered in place it is a part of the round's sum.
                twin.grad = None if parameter.grad is None else parameter.grad.clone()
        return other
