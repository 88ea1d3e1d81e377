"""Algorithm 1 as step hooks on the user's own optimizer.

A round is K turns, one optimizer step each. The pre hook takes the base weights' gradients away and adds them up, so
that `step()` updates the late-phase weights of the member in the model and passes over the base weights; on the round's
last turn the base weights get the scaled sum, and step too. The post hook parks the member and brings in the next one.

What a step does not finish (it raises, or a gradient scaler skips it) leaves nothing behind: gradients count from the
post hook on.
"""

import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .distributed import State
from .errors import LatePhaseError
from .gradients import add_up, cloned, mean_state, moves_nothing, owned
from .sharding import local
from .stand_ins import standing_in


class Turns(Protocol):
    """What the hooks need to know of the round, and tell it."""

    base_gradient: float
    resumed: Any

    @property
    def alive(self) -> bool:
        """Whether the members have come to life."""

    @property
    def last(self) -> bool:
        """Whether this is the round's last turn."""

    @property
    def several(self) -> bool:
        """Whether a turn waits for more than one optimizer."""

    @property
    def due(self) -> bool:
        """Whether the member whose turn it is, is in the model."""

    def check_gradients(self) -> None:
        """Raise where the gradients are another member's."""

    def check_step(self, steps: "Steps") -> None:
        """Raise where a step cannot be right now."""

    def sum_over_ranks(self, gradients: list[Tensor | None], like: list[nn.Parameter]) -> list[Tensor | None]:
        """Add up what every rank gathered."""

    def replay(self, steps: "Steps") -> bool:
        """After a parallel pass: step all members but the last, whose gradients are left in place."""

    def stepped(self, steps: "Steps", moved: bool) -> None:
        """An optimizer has finished its step of this turn."""


class Steps:
    """The hooks on one optimizer, its sum of base gradients, and its members' states.

    Args:
        optimizer: a torch optimizer.
        turns: the phase.
        late: all late-phase weights of the model.
        drives: whether a turn waits for a step of this optimizer.
        in_place: gather gradients during backward, without a second copy.
    """

    def __init__(
        self, optimizer: Optimizer, turns: Turns, late: set[nn.Parameter], *, drives: bool, in_place: bool
    ) -> None:
        self.optimizer, self.turns, self.drives, self.in_place = optimizer, turns, drives, in_place
        self.sums: dict[nn.Parameter, Tensor] = {}
        self.states: list[State] = []
        self.done = False
        """Whether this optimizer has stepped in the present turn."""
        self.moved = False
        """Whether it had gradients to step with."""
        self.nested = False
        """Whether the phase itself is stepping, once a member, through the optimizer's own `step`."""
        self._late_weights = late
        self._shape: tuple[int, ...] = ()
        self._stateless: list[nn.Parameter] = []
        self._idle = False
        self._pending: list[tuple[nn.Parameter, Tensor]] | None = None
        self._scalars: list[dict[str, Any]] = []
        self._gathers: list[Any] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def remove(self) -> None:
        """Take the hooks off; gradients gathered so far are dropped."""
        for handle in (*self._handles, *self._gathers):
            handle.remove()
        self.sums.clear()

    # Which of the optimizer's parameters are whose

    def _lists(self) -> None:
        shape = tuple(len(group["params"]) for group in self.optimizer.param_groups)
        if shape == self._shape:
            return
        self._shape = shape
        every = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._base = [p for p in every if p not in self._late_weights]
        self._late = [p for p in every if p in self._late_weights]

    @property
    def base(self) -> list[nn.Parameter]:
        """The base weights of this optimizer: all that is not late-phase, of whatever module."""
        self._lists()
        return self._base

    @property
    def late(self) -> list[nn.Parameter]:
        """The late-phase weights of this optimizer."""
        self._lists()
        return self._late

    # The members' optimizer states

    def come_to_life(self, members: int, copy: bool, present: int) -> None:
        """Give every member a state of its own: a copy of the present one, or none yet."""
        state = self.optimizer.state
        now = {p: state[p] for p in self.late if p in state} if copy else {}
        self.states = [{p: cloned(values) for p, values in now.items()} for _ in range(members)]
        self.bring(present)
        if self.in_place:
            self._gathers = [p.register_post_accumulate_grad_hook(self._gather) for p in self.base if p.requires_grad]

    def park(self, member: int) -> None:
        """Note where the member's state is; it is never copied."""
        state = self.optimizer.state
        self.states[member] = {p: state[p] for p in self.late if p in state}

    def bring(self, member: int) -> None:
        """Make the member's state the optimizer's, in place of the one that is there."""
        state, values = self.optimizer.state, self.states[member]
        for parameter, its in values.items():
            state[parameter] = its
        if len(values) < len(self.late):
            for parameter in self.late:
                if parameter not in values:
                    state.pop(parameter, None)

    def average_states(self, present: int) -> None:
        """Leave the optimizer with the mean of the members' states: for weights that have become their average."""
        self.park(present)
        for parameter in self.late:
            states = [member[parameter] for member in self.states if parameter in member]
            if states:
                self.optimizer.state[parameter] = {key: mean_state([s[key] for s in states]) for key in states[0]}

    # One step

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.nested or _inside_a_step(optimizer):
            return None
        self._pending = None
        if moves_nothing(optimizer):
            return None
        self._stateless, self._idle = [], False
        self.turns.resumed = None
        if not self.turns.alive:
            return None
        self.turns.check_step(self)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._withhold()
            return None
        wrapped = self._once(closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    def _once(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        called = False

        def wrapped() -> Any:
            nonlocal called
            if called:
                raise LatePhaseError(
                    f"{type(self.optimizer).__name__} evaluates its closure more than once in a step; late-phase "
                    "training gives every member one minibatch a step, so use an optimizer that evaluates it once"
                )
            called = True
            loss = closure()
            self._withhold()
            return loss

        return wrapped

    @torch.no_grad()
    def _withhold(self) -> None:
        """Take the base gradients away, or, on the last turn, put the round's sum in their place."""
        taken = [(p, g.detach() if g.requires_grad else g) for p in self.base if (g := p.grad) is not None]
        if not taken and not self._gathered and all(p.grad is None for p in self.late):
            # Without gradients it is not a turn, unless another optimizer has some; then the sum is due all the same.
            self._idle = not (self.turns.several and self.turns.last and self.sums and not self.done)
            if self._idle:
                return
        self.turns.check_gradients()
        found = getattr(self.optimizer, "found_inf", None)
        if found is not None and float(found) > 0:
            # A fused optimizer skips this step by itself, but not without making states, of whatever was in memory.
            self._stateless = [p for p in (*self.base, *self.late) if p not in self.optimizer.state]
            return
        scale = getattr(self.optimizer, "grad_scale", None)
        self._pending = []
        self._scalars = [_numbers(group) for group in self.optimizer.param_groups]
        if self.turns.replay(self) or (self.turns.last and not self.done):
            if self._states_differ():
                self.step_late()
            self._hand_over(self.base, scale)
            return
        for parameter, gradient in taken:
            parameter.grad = None
            self._pending.append((parameter, gradient if scale is None else gradient / scale))

    def _states_differ(self) -> bool:
        """Whether base and late-phase weights cannot go through one fused kernel, which wants all states or none."""
        if not any(group.get("fused") for group in self.optimizer.param_groups):
            return False
        known = [{p in self.optimizer.state for p in part if p.grad is not None} for part in (self.base, self.late)]
        return len(known[0] | known[1]) > 1

    def step_late(self) -> None:
        """Step the member in the model alone, through the optimizer's own `step`."""
        base = [(p, p.grad) for p in self.base]
        for parameter, _ in base:
            parameter.grad = None
        self._step()
        for parameter, gradient in base:
            parameter.grad = gradient
        for parameter in self.late:
            parameter.grad = None

    def step_members(self, rows: dict[nn.Parameter, list[nn.Parameter]]) -> None:
        """Step all members alone: for each late-phase weight there are their own, which stand in for it."""
        with standing_in(self.optimizer, self.states, rows):
            self._step()

    def _step(self) -> None:
        self.nested = True
        try:
            self.optimizer.step()
        finally:
            self.nested = False
        self.restore_counters()

    def _hand_over(self, base: list[nn.Parameter], scale: Tensor | None) -> None:
        """Give the base weights the round's gradient: gamma times the sum of the members'."""
        sums: list[Tensor | None] = []
        dense: list[tuple[Tensor, Tensor]] = []
        for parameter in base:
            gradient, gathered = parameter.grad, self.sums.get(parameter)
            if gathered is not None and scale is not None:
                gathered = gathered * scale
            if gradient is None or gathered is None:
                # A step that raises must find the sum as it was; gathered in place, there is no room for a copy.
                alone = gathered if gathered is None or self.in_place else gathered.clone()
                sums.append(alone if gradient is None else gradient)
            elif gradient.layout == gathered.layout == torch.strided:
                dense.append((local(gradient), local(gathered)))
                sums.append(gradient)
            else:
                sums.append(gathered + gradient)
        if dense:
            torch._foreach_add_([gradient for gradient, _ in dense], [gathered for _, gathered in dense])
        sums = self.turns.sum_over_ranks(sums, base)
        gamma = self.turns.base_gradient
        present = [local(total) for total in sums if total is not None]
        if gamma != 1 and present:
            torch._foreach_mul_(present, gamma)
        for parameter, total in zip(base, sums, strict=True):
            parameter.grad = total

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.nested or _inside_a_step(optimizer):
            return
        while self._stateless:
            optimizer.state.pop(self._stateless.pop(), None)
        if self._pending is None:
            if self._idle:
                self.turns.stepped(self, moved=False)
            return
        if self.turns.last and not self.done:
            self.sums.clear()
        else:
            self.restore_counters()
            add_up(self.sums, self._pending)
        self._pending = None
        self._gathered = False
        self.turns.stepped(self, moved=True)

    def restore_counters(self) -> None:
        """Undo what a step did to the numbers in the optimizer's groups."""
        # Some optimizers count steps in their groups (timm's Lamb, Adan, schedule-free). The base weights and each
        # member step once a round, so a group's counters move on the last turn alone; every turn starts from the same.
        for group, scalars in zip(self.optimizer.param_groups, self._scalars, strict=False):
            for key, value in scalars.items():
                if isinstance(value, Tensor):
                    group[key].copy_(value)
                else:
                    group[key] = value

    # Gathering during backward

    _gathered = False

    def _gather(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        gradient = parameter.grad
        if not self.turns.due or gradient is None:
            return
        known = self.sums.get(parameter)
        self.sums[parameter] = owned(gradient) if known is None else known.add_(gradient)
        parameter.grad = None
        self._gathered = True


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers in a group, which its optimizer may count up, those in tensors as copies; rates are schedulers'."""
    tensors = {key: value.clone() for key, value in group.items() if isinstance(value, Tensor) and key != "lr"}
    return tensors | {key: value for key, value in group.items() if type(value) in (int, float)}


def _inside_a_step(optimizer: Optimizer) -> bool:
    """Whether a step of this optimizer has been called by its own step.

    torch runs an optimizer's hooks in every class whose `step` takes part: once more where a subclass calls
    `super().step()`. Only the stack tells that from a step after one that raised.
    """
    code, depth = getattr(type(optimizer).step, "__code__", None), 0
    frame = sys._getframe(1)
    while frame is not None and depth < 2:
        if frame.f_code is code and frame.f_locals.get("self") is optimizer:
            depth += 1
        frame = frame.f_back  # type: ignore[assignment]
    return depth > 1
