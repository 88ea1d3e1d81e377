"""The user of a random phase: model, optimizers, phase and the reference beside them, and what must hold of these."""

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latephase import LatePhaseError
from laws import Values, difference, every_member, hooks, optimizer_values, slow_average, tensors, tolerance
from random_models import Architecture, loss
from random_phases import Settings
from shadow import Shadow
from tally import Tally

AVERAGE = -1


class InterruptionError(Exception):
    """Raised by the user's own code in the middle of something."""


class Bench:
    """One user's objects, and the laws.

    Args:
        architecture: the model.
        settings: the phase.
        tally: counts what happens.
    """

    def __init__(self, architecture: Architecture, settings: Settings, tally: Tally) -> None:
        self.architecture, self.settings, self.tally = architecture, settings, tally
        self.pins: list[tuple[int, Any]] = []
        self.stepped: set[int] = set()
        self.graded: int | None = None
        self.resumed = self.stale = False
        self.batches = itertools.count()
        self.families = settings.families
        self.dtype = architecture.dtype
        self.keys = list(architecture.build(0).state_dict())
        self.attach(architecture.build(0))

    # Life

    def attach(
        self, model: nn.Module, optimizers: list[Optimizer] | None = None, names: list[list[str]] | None = None
    ) -> None:
        """A phase on a model; what is refused leaves no trace, and other families come."""
        before, given = tensors(model), list(model.parameters())
        for families in (self.families, ("head-named",), ("full",)):  # nothing is left to share in "full" alone
            self.families = families
            try:
                late = self.settings.attach(model, families)
                break
            except LatePhaseError as error:
                self.tally.refused(error)
                assert difference(tensors(model), before) == ""
                assert hooks(model) == [], hooks(model)
                assert all(a is b for a, b in zip(model.parameters(), given, strict=True))
        else:
            raise AssertionError("a phase of all weights has been refused")
        self.tally.families.update(self.families)
        self.model, self.late, self.given = model, late, given
        self.optimizers = self.settings.build(model, late, names) if optimizers is None else optimizers
        for optimizer in self.optimizers:
            assert late.optimizer(optimizer) is optimizer
        self.shadow: Shadow | None = self.follow()
        self.saved: list[dict[str, Any]] = []
        self.stepped.clear()
        self.graded, self.resumed = None, False

    def names(self) -> list[list[str]]:
        """What the optimizers hold, in their order."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [[names[p] for group in each.param_groups for p in group["params"]] for each in self.optimizers]

    def start(self) -> None:
        """The members come to life, which changes nothing in the model unless noise is asked for."""
        before, drawn = tensors(self.model), None
        self.late.start()
        if self.settings.noise == 0:
            if self.model.training:
                assert difference(tensors(self.model), before) == ""
        else:
            drawn = every_member(self.late)
        if self.stepped:
            self.lose()
        self.stepped.clear()
        if self.shadow is not None:
            self.shadow.start(drawn)

    def follow(self) -> Shadow:
        """The reference from here on."""
        settings = self.settings
        in_place = settings.accumulate == "in_place"
        return Shadow(self.late, self.optimizers, settings.gamma, settings.optimizer_state, in_place)

    def lose(self) -> None:
        """The reference cannot follow any further."""
        self.shadow = None

    @property
    def started(self) -> bool:
        """Whether the members live."""
        return self.late.phase == "late"

    def shown(self) -> int:
        """What the interface promises to be in the model."""
        if self.pins:
            return self.pins[-1][0]
        return self.late.turn if self.model.training else AVERAGE

    # Training

    def batch(self, size: int = 4) -> tuple[Tensor, Tensor]:
        """The next minibatch."""
        return self.architecture.batch(size, next(self.batches))

    def current(self) -> nn.Module | None:
        """The model of the reference that corresponds to what is in the model; None where there is none."""
        if self.shadow is None or not self.started:
            return None if self.shadow is None else self.shadow.model()
        return None if self.shown() == AVERAGE else self.shadow.model(self.shown())

    def forward(self, size: int = 4, fails: bool = False, backward: bool = True) -> None:
        """A forward pass, with or without its backward, of model and reference."""
        if self.stepped or (self.stale and backward):
            self.lose()
        x, y = self.batch(size)
        for model in (self.model, self.current()):
            if model is None:
                continue
            try:
                with interrupting(model) if fails else nullcontext():
                    outputs = model(x)
            except (InterruptionError, ValueError):
                continue
            result = loss(outputs, y)
            if backward and result.requires_grad:
                result.backward()
                if model is self.model and self.started:
                    self.graded = self.shown()
        if backward and self.started and self.shown() != self.late.turn:
            # The gradients of another member, or of the average, are in the way of those of the turn.
            self.lose()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of all optimizers, and of the reference."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)
        self.stale = False
        if self.shadow is not None:
            self.shadow.zero_grad()

    def clip(self) -> None:
        """Clip the gradients of the model, and those of the reference."""
        for model in (self.model, None if self.shadow is None else self.shadow.model()):
            if model is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    def step(self, index: int) -> None:
        """One optimizer's step, refused where the wrong values would move."""
        names = {p: name for name, p in self.model.named_parameters()}
        held = [p for group in self.optimizers[index].param_groups for p in group["params"]]
        present = [names[p] for p in held if p.grad is not None]
        if self.started and (self.shown() != self.late.turn or index in self.stepped):
            self.refused(lambda: self.optimizers[index].step())
            return
        if self.started and present and self.graded not in (None, AVERAGE, self.late.turn):
            self.refused(lambda: self.optimizers[index].step())
            self.zero_grad()
            return
        if index in self.stepped or (self.stale and present):
            self.lose()  # one of several optimizers alone, before the start; gradients that have had their step
        if present:
            self.graded = None
        if self.shadow is not None:
            self.shadow.collect(index, present)
        self.optimizers[index].step()
        self.resumed = False
        self.stepped.add(index)
        if len(self.stepped) == len(self.optimizers):
            self.stale = True
            self.stepped.clear()
            if self.shadow is not None:
                self.shadow.turn()

    def turn(self, clip: bool = False, set_to_none: bool = True, times: int = 1) -> None:
        """A minibatch as in every loop."""
        self.zero_grad(set_to_none)
        for _ in range(times):
            self.forward()
        if clip and self.settings.accumulate == "copy":
            self.clip()
        for index in range(len(self.optimizers)):
            if index not in self.stepped:
                self.step(index)
        self.zero_grad(set_to_none)

    # Refusals

    def refused(self, call: Callable[[], object], *others: type[BaseException], statistics: bool = True) -> None:
        """Call something that must be refused, with the documented error, and leave everything as it was."""
        before = self.everything(statistics)
        try:
            call()
        except LatePhaseError as error:
            self.tally.refused(error)
        except others:
            pass
        else:
            raise AssertionError(f"not refused: {call.__qualname__}")
        self.unchanged(before, statistics)

    def unchanged(self, before: dict[str, Any], statistics: bool = True) -> None:
        """Assert that nothing differs from what `everything` returned."""
        for name, value in self.everything(statistics).items():
            old = before[name]
            same = torch.equal(value, old) or bool(value.isnan().any()) if isinstance(value, Tensor) else value == old
            assert same, f"changed by what was refused: {name}: {old} became {value}"

    def everything(self, statistics: bool = True) -> dict[str, Any]:
        """All that a refusal must leave alone."""
        late, found = self.late, dict(optimizer_values(self.optimizers))
        found = {name: value.clone() if isinstance(value, Tensor) else value for name, value in found.items()}
        found |= {"phase": late.phase, "turn": late.turn, "rounds": late.rounds}
        found["modes"] = [module.training for module in self.model.modules()]
        found["gradients"] = [p.grad is None for p in self.model.parameters()]
        members = every_member(late) if self.started else [tensors(self.model)]
        for k, member in enumerate(members):
            kept = {n: v for n, v in member.items() if statistics or not ("running" in n or "num_batches" in n)}
            found |= {f"member {k}: {name}": value for name, value in kept.items()}
        return found

    # The laws

    def check(self) -> None:
        """Everything that must hold now."""
        state = self.model.state_dict()
        assert list(state) == self.keys, f"keys: {list(state)}"
        inside = set(self.model.parameters())
        assert all(p in inside for p in self.given), "a Parameter of the user's has been replaced"
        modes = [module.training for module in self.model.modules()]
        raw = tensors(self.model)
        if self.started:
            self.check_members(raw, state)
        elif self.shadow is not None and not self.stepped and self.late.phase == "attached":
            self.tally.compared += 1
            assert (found := difference(raw, tensors(self.shadow.model()))) == "", f"before the start: {found}"
        assert modes == [module.training for module in self.model.modules()], "training flags"

    def check_members(self, raw: Values, state: Values) -> None:
        """What only members can break."""
        late, members, shown = self.late, every_member(self.late), self.shown()
        own = {n for n in raw if "running_" in n or "num_batches" in n}
        weights = dict(self.model.named_parameters(remove_duplicate=False))
        ours = {id(p) for p in late.late_parameters()}
        own |= {name for name, p in weights.items() if id(p) in ours}
        for k, member in enumerate(members):
            shared = {name: value for name, value in member.items() if name not in own}
            first = {name: members[0][name] for name in shared}
            assert (found := difference(shared, first)) == "", f"member {k} has its own {found}"
        if shown != AVERAGE:
            assert (found := difference(raw, members[shown])) == "", f"in the model is not member {shown}: {found}"
        after = tensors(self.model)
        if shown != AVERAGE:
            assert (found := difference(after, raw)) == "", f"a look at the members has changed {found}"
        slow = slow_average(late, members, products="lora-factors" not in self.families)
        assert (found := difference(dict(state), slow, tolerance(self.dtype))) == "", f"average: {found}"
        if self.shadow is not None and not self.stepped and self.dtype == torch.float64:
            self.tally.compared += 1
            assert late.turn == self.shadow.judge.turn, f"turn {late.turn}, not {self.shadow.judge.turn}"
            for k, member in enumerate(members):
                found = difference(member, tensors(self.shadow.judge.members[k]), 1e-7)
                assert found == "", f"member {k} is not the reference's: {found}"

    def check_ordinary(self) -> None:
        """After the collapse: an ordinary model, of which nothing is left."""
        assert hooks(self.model) == [], hooks(self.model)
        assert list(self.model.state_dict()) == self.keys
        assert [n for n, _ in self.model.named_parameters()] == [
            n for n, _ in self.architecture.build(1).named_parameters()
        ]
        assert all(a is b for a, b in zip(self.model.parameters(), self.given, strict=True))
        plain = self.architecture.build(1)
        plain.load_state_dict(self.model.state_dict(), strict=True)
        held = {p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]}
        assert held == set(self.given), "the optimizers hold other parameters than the model's"
        x, _ = self.batch()
        with torch.no_grad():
            assert difference({"y": copy.deepcopy(self.model).eval()(x)}, {"y": plain.eval()(x)}) == ""


@contextmanager
def interrupting(model: nn.Module) -> Iterator[None]:
    """The model's last layer raises, after all others have run."""

    def interrupt(*_: Any) -> None:
        raise InterruptionError

    handle = model.get_submodule("head").register_forward_pre_hook(interrupt)
    try:
        yield
    finally:
        handle.remove()
