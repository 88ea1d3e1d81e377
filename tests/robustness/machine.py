"""A state machine that calls everything public, and does what users do, in any order.

The laws are those of `bench.py`. Hypothesis chooses model, families and calls, and shrinks what breaks a law to the
shortest program that does.
"""

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from torch import nn

import latephase
from bench import AVERAGE, InterruptionError
from latephase import LatePhaseError
from laws import difference, tolerance
from machine_training import Training
from random_models import loss

ORDERS = tuple(itertools.permutations(("model", "optimizers", "late")))


def loaded(state: Any) -> Any:
    """What comes back from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def wrong_calls(late: latephase.LatePhase, model: nn.Module, other: nn.Module) -> list[Callable[[], object]]:
    """Calls with arguments that cannot work, at any time."""
    foreign = torch.optim.SGD(other.parameters(), lr=0.1)
    return [
        lambda: late.optimizer(foreign),
        lambda: late.optimizer(torch.optim.LBFGS(model.parameters())),
        lambda: late.optimizer(None),
        lambda: late.member(late.members),
        lambda: late.member(-1),
        lambda: late.parallel(torch.zeros(2, 4), reduction="none"),
        lambda: late.collapse(statistics="none"),
        lambda: late.load_state_dict({}),
        lambda: late.load_state_dict({**late.state_dict(), "members": late.members + 1}),
        lambda: late.load_state_dict({**late.state_dict(), "format": 0}),
        lambda: late.load_state_dict({**late.state_dict(), "values": {"nobody": torch.zeros(1)}}),
        lambda: latephase.LatePhase(other, members=0),
        lambda: latephase.LatePhase(other, weights="nobody"),
        lambda: latephase.LatePhase(other, base_gradient=float("nan")),
        lambda: latephase.Round(late, [], loss, mode="none"),
    ]


class LifeCycle(Training):
    """A user who does anything at any time."""

    # What is in the model

    @rule(training=st.booleans(), part=st.sampled_from(("", "", "", "blocks", "head", "stem")))
    def mode(self, training: bool, part: str) -> None:
        bench = self._count("train()/eval()")
        bench.model.get_submodule(part).train(training)
        if bench.shadow is not None:
            bench.shadow.each(lambda model: model.get_submodule(part).train(training))

    @rule(member=st.integers(-1, 7))
    def enter(self, member: int) -> None:
        bench = self._count("enter a context")
        k = member if member == AVERAGE else member % bench.late.members
        if not bench.started:
            bench.refused(lambda: bench.late.average() if k == AVERAGE else bench.late.member(k))
            return
        context = bench.late.average() if k == AVERAGE else bench.late.member(k)
        assert context.__enter__() is bench.model
        bench.pins.append((k, context))

    @precondition(lambda self: self.bench.pins)
    @rule(raises=st.booleans())
    def leave(self, raises: bool) -> None:
        bench = self._count("leave a context")
        _, context = bench.pins.pop()
        error = InterruptionError()
        try:
            context.__exit__(*((InterruptionError, error, None) if raises else (None, None, None)))
        except InterruptionError:
            assert raises

    @rule()
    def predict(self) -> None:
        bench = self._count("predict")
        x, _ = bench.batch()
        if not bench.started:
            bench.refused(lambda: bench.late.predict(x))
            return
        before = bench.everything()
        assert bench.late.predict(x).shape == (bench.late.members, 4, 3)
        bench.unchanged(before)

    @rule()
    def stale_backward(self) -> None:
        bench = self._count("backward after another member came")
        if not bench.started:
            return
        bench.zero_grad()
        x, y = bench.batch()
        result = loss(bench.model(x), y)
        bench.lose()
        with bench.late.average() if bench.shown() != AVERAGE else bench.late.member(0):
            pass
        if result.requires_grad:
            try:
                result.backward()
            except LatePhaseError as error:
                self.tally.refused(error)
            else:
                raise AssertionError("a backward through another member's graph went through")
        bench.zero_grad()
        bench.graded = None

    # Copies and state

    @rule(way=st.sampled_from(("deepcopy", "pickle")))
    def copy(self, way: str) -> None:
        bench = self._count(way)
        parametrized = any(hasattr(module, "parametrizations") for module in bench.model.modules())
        if way == "pickle" and parametrized:
            return  # torch itself refuses
        other = copy.deepcopy(bench.model) if way == "deepcopy" else pickle.loads(pickle.dumps(bench.model))
        average = dict(bench.late.averaged_state_dict())
        assert difference(dict(other.state_dict()), average) == ""
        other.eval().train()
        assert difference(dict(other.state_dict()), average) == ""

    @rule()
    def save(self) -> None:
        bench = self._count("save")
        shadow = bench.shadow.copy() if bench.shadow is not None and not bench.stepped else None
        state = {
            "model": bench.model.state_dict(),
            "late": bench.late.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in bench.optimizers],
        }
        bench.saved.append({**loaded(state), "shadow": shadow, "stepped": set(bench.stepped), "names": bench.names()})

    @precondition(lambda self: self.bench.saved)
    @rule(order=st.sampled_from(ORDERS), fresh=st.booleans(), last=st.booleans(), twice=st.booleans())
    def load(self, order: tuple[str, ...], fresh: bool, last: bool, twice: bool) -> None:
        bench = self._count("resume in fresh objects" if fresh else "load")
        state = bench.saved[-1 if last else 0]
        if bench.late.phase == "collapsed" or bench.pins:
            return
        if fresh:
            saved, stepped = bench.saved, bench.stepped
            bench.attach(bench.architecture.build(5), names=state["names"])
            bench.saved, bench.stepped = saved, stepped
        elif state["late"]["phase"] == "attached" and bench.started:
            bench.refused(lambda: bench.late.load_state_dict(state["late"]))
            return
        for part in order * (1 + twice):
            if part == "model":
                bench.model.load_state_dict(state["model"])
            elif part == "late":
                bench.late.load_state_dict(state["late"])
            else:
                for optimizer, its in zip(bench.optimizers, state["optimizers"], strict=True):
                    optimizer.load_state_dict(copy.deepcopy(its))  # torch trains on in the tensors that it is given
        bench.resumed = True
        bench.zero_grad()
        bench.graded = None
        bench.shadow = state["shadow"].copy() if state["shadow"] is not None else None
        bench.stepped = set(state["stepped"])
        bench.model.train()
        if bench.shadow is not None:
            bench.shadow.each(lambda model: model.train())
            bench.shadow.zero_grad()

    @rule(order=st.sampled_from(ORDERS), fresh=st.booleans(), before=st.integers(0, 2), after=st.integers(0, 4))
    def resume(self, order: tuple[str, ...], fresh: bool, before: int, after: int) -> None:
        # As one rule: chance alone would seldom save within a round, load at once and train that round to its end.
        for _ in range(before):
            self.bench.turn()
        self.save()
        self.load(order, fresh, last=True, twice=False)
        for _ in range(after):
            self.bench.turn()

    @precondition(lambda self: self.bench.saved)
    @rule(part=st.sampled_from(("model", "late")))
    def load_a_part(self, part: str) -> None:
        bench = self._count("load a part")
        state = bench.saved[0]
        early = part == "late" and state["late"]["phase"] == "attached" and bench.started
        if part == "late" and (early or bench.late.phase == "collapsed"):
            bench.refused(lambda: bench.late.load_state_dict(state["late"]))
            return
        (bench.model if part == "model" else bench.late).load_state_dict(state[part])
        if part == "late":
            bench.stepped, bench.resumed = set(state["stepped"]), True
        bench.zero_grad()
        bench.graded = None
        bench.lose()

    @rule()
    def load_the_average(self) -> None:
        bench = self._count("model.load_state_dict(average)")
        average = bench.late.averaged_state_dict()
        if bench.late.state_dict()["turn"] or bench.stepped or bench.shown() == AVERAGE:
            bench.lose()
        bench.model.load_state_dict(average)
        if bench.shadow is not None:
            bench.lose() if bench.resumed or bench.families != ("full",) else bench.shadow.each(
                lambda m: m.load_state_dict(average)
            )
        if not bench.resumed:  # until the first step after that, what was resumed outlasts what the model loads
            found = difference(dict(bench.late.averaged_state_dict()), dict(average), tolerance(bench.dtype))
            assert found == "", f"loaded, but not there: {found}"

    # Life

    @rule(again=st.booleans())
    def start(self, again: bool) -> None:
        bench = self._count("start")
        if bench.late.phase != "attached":
            if again:
                bench.refused(bench.late.start)
            return
        bench.start()

    @rule(really=st.sampled_from((False, True)), fold=st.booleans(), check=st.booleans(), again=st.booleans())
    def collapse(self, really: bool, fold: bool, check: bool, again: bool) -> None:
        if not really:  # an end too early would hide what comes later
            return
        bench = self._count("collapse")
        late, size = bench.late, 3
        x, _ = bench.batch(size)
        if late.phase == "collapsed" or bench.pins:
            bench.refused(late.collapse)
            return
        average, training = late.averaged_state_dict(), bench.model.training
        given = late.collapse("fold" if fold else "mean", x if check else None)
        assert given is bench.model
        assert bench.model.training == training
        if fold:
            near = 0.0 if bench.families == ("full",) else tolerance(bench.dtype)
            assert difference(dict(given.state_dict()), dict(average), near) == ""
        bench.lose()
        bench.stepped.clear()
        bench.graded = None
        bench.check_ordinary()
        for call in (late.start, late.state_dict, late.average, lambda: late.optimizer(bench.optimizers[0])):
            if call != late.state_dict:
                bench.refused(call)
        if again:
            bench.zero_grad()
            bench.attach(bench.model, bench.optimizers)

    @rule()
    def recompute_statistics(self) -> None:
        bench = self._count("recompute_statistics")
        batches = [bench.batch(size)[0] for size in (4, 3)]
        if bench.started:
            bench.refused(lambda: latephase.recompute_statistics(bench.model, batches))
            return
        flags = [module.training for module in bench.model.modules()]
        bench.refused(lambda: latephase.recompute_statistics(bench.model, []))
        latephase.recompute_statistics(bench.model, batches)
        assert flags == [module.training for module in bench.model.modules()]
        if bench.shadow is not None:
            latephase.recompute_statistics(bench.shadow.model(), batches)

    @rule()
    def names_and_groups(self) -> None:
        bench = self._count("names and groups")
        late = bench.late
        groups = late.parameter_groups(lr=0.1, late_lr=0.2, late_weight_decay=0.0)
        assert sum(len(group["params"]) for group in groups) == len(list(bench.model.parameters()))
        if late.phase != "collapsed":
            names = dict(bench.model.named_parameters())
            assert [names[name] for name in late.late_names()] == late.late_parameters()

    @rule(which=st.integers(0, 14))
    def wrong_argument(self, which: int) -> None:
        bench = self._count("wrong argument")
        other = bench.architecture.build(2)
        calls = wrong_calls(bench.late, bench.model, other)
        # A batch that BatchNorm refuses, and an unknown structure, are torch's own errors.
        bench.refused(calls[which % len(calls)])
        if not bench.started:
            bench.refused(lambda: bench.late.parallel(bench.batch()[0]))

    @rule()
    def attach_twice(self) -> None:
        bench = self._count("attach twice")
        if bench.started:
            bench.refused(lambda: latephase.LatePhase(bench.model, members=2, weights="full"))
