"""The rules of the state machine that train: minibatches, steps, closures, whole rounds."""

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import latephase
from bench import Bench, InterruptionError
from latephase import LatePhaseError
from random_models import Architecture, architectures, loss
from random_phases import Settings, settings_of_phases
from tally import Tally


class Training(RuleBasedStateMachine):
    """A user who trains, however that goes."""

    tally = Tally()

    @initialize(
        architecture=architectures(), settings=settings_of_phases(), minibatches=st.sampled_from((0, 1, 3, None))
    )
    def attach(self, architecture: Architecture, settings: Settings, minibatches: int | None) -> None:
        self.tally.examples += 1
        self.tally.models.add(repr(architecture))
        self.bench = Bench(architecture, settings, self.tally)
        if minibatches is not None:
            for _ in range(minibatches):
                self.bench.turn()
            self.bench.start()

    def _count(self, name: str) -> Bench:
        self.tally.rules[name] += 1
        return self.bench

    def _phase(self) -> str:
        return self.bench.late.phase

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            while self.bench.pins:
                self.bench.pins.pop()[1].__exit__(None, None, None)

    @invariant()
    def laws(self) -> None:
        if hasattr(self, "bench"):
            self.bench.check()

    # Training

    @rule(turns=st.integers(1, 4), clip=st.booleans(), set_to_none=st.booleans(), times=st.sampled_from((1, 1, 2)))
    def train(self, turns: int, clip: bool, set_to_none: bool, times: int) -> None:
        bench = self._count("train")
        for _ in range(turns):
            bench.turn(clip, set_to_none, times)

    @rule()
    def a_turn(self) -> None:
        # Hypothesis falls back on the rule with the fewest arguments and the first name: one after which there is more
        # to be seen than before.
        self._count("a turn").turn()

    @rule(size=st.sampled_from((4, 2, 1)), backward=st.booleans(), fails=st.sampled_from((False, False, True)))
    def forward(self, size: int, backward: bool, fails: bool) -> None:
        self._count("forward that raises" if fails else "forward").forward(size, fails, backward)

    @rule(first=st.booleans())
    def step(self, first: bool) -> None:
        bench = self._count("step")
        bench.step(0 if first else len(bench.optimizers) - 1)

    @rule(set_to_none=st.booleans())
    def zero_grad(self, set_to_none: bool) -> None:
        self._count("zero_grad").zero_grad(set_to_none)

    @rule()
    def clip(self) -> None:
        bench = self._count("clip")
        if bench.settings.accumulate == "copy":
            bench.clip()

    @rule(factor=st.sampled_from((0.5, 2.0)))
    def schedule(self, factor: float) -> None:
        bench = self._count("schedule")
        if bench.stepped:
            bench.lose()  # the reference takes all optimizers' steps of a turn at once
        clocks = bench.shadow.judge.clocks if bench.shadow is not None else []
        for group in [group for optimizer in (*bench.optimizers, *clocks) for group in optimizer.param_groups]:
            group["lr"] *= factor

    @rule(fails=st.booleans())
    def closure(self, fails: bool) -> None:
        bench = self._count("step with a closure that raises" if fails else "step with a closure")
        if bench.stepped or len(bench.optimizers) > 1 or (bench.started and bench.shown() != bench.late.turn):
            return
        bench.zero_grad()
        bench.lose()
        x, y = bench.batch()

        def evaluate() -> torch.Tensor:
            bench.zero_grad()
            result = loss(bench.model(x), y)
            if fails:
                raise InterruptionError
            if result.requires_grad:
                result.backward()
            return result.detach()

        turn = (bench.late.turn, bench.late.rounds)
        bench.resumed = False
        try:
            bench.optimizers[0].step(evaluate)
        except InterruptionError:
            assert (bench.late.turn, bench.late.rounds) == turn
        bench.graded = None
        bench.zero_grad()

    @rule(whole=st.booleans(), mean=st.booleans(), way=st.sampled_from(("parallel", "loop", "auto", "parallel")))
    def round(self, whole: bool, mean: bool, way: str) -> None:
        bench = self._count("a whole round")
        late, size = bench.late, 2 * bench.late.members
        bench.zero_grad()
        x, y = bench.batch(size if whole else size + 1)
        odd = not whole and late.members > 1
        before = bench.everything(statistics=False)
        try:
            if way == "parallel":
                outputs = late.parallel(x, reduction="mean" if mean else "sum")
                assert not odd
                result = loss(outputs, y) * (1 if mean else size if whole else size + 1)
                result.backward() if result.requires_grad else None
                for optimizer in bench.optimizers:
                    optimizer.step()
            else:
                latephase.Round(late, bench.optimizers, loss, mode=way)(x, y)
        except LatePhaseError as error:
            self.tally.refused(error)
            bench.lose()
            bench.zero_grad()
            bench.unchanged({**before, "gradients": bench.everything(False)["gradients"]}, statistics=False)
            return
        bench.stepped.clear()
        bench.graded, bench.resumed = None, False
        bench.zero_grad()
        shadow = bench.shadow
        if shadow is None or not shadow.started or bench.pins or bench.settings.accumulate == "in_place" or not mean:
            bench.lose()
            return
        for one, target in zip(x.chunk(late.members), y.chunk(late.members), strict=True):
            shadow.zero_grad()
            result = loss(shadow.model()(one), target)
            result.backward() if result.requires_grad else None
            names = [name for name, p in shadow.model().named_parameters() if p.grad is not None]
            for index in range(len(bench.optimizers)):
                shadow.collect(index, names)
            shadow.turn()
