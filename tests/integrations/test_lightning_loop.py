"""LatePhaseCallback against the plain loop on the same minibatches: bit for bit where nothing else is said."""

import re
import runpy
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from lit import (
    EPOCHS,
    MEMBERS,
    OWN_WARNINGS,
    PER_EPOCH,
    QUIET,
    STEPS,
    Lit,
    Manual,
    Resumable,
    Smooth,
    assert_equal,
    assert_trained_as,
    batches,
    fit,
    network,
    optimizers,
    plain_loop,
    smooth,
    values,
)
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR

import latephase
from latephase.integrations.lightning import LatePhaseCallback

pytestmark = [pytest.mark.filterwarnings(warning) for warning in OWN_WARNINGS]


@pytest.mark.parametrize(
    ("start", "step"), [("2e", 14), (9, 9), (0, 0), (0.5, 14), (0.35, 9)], ids=["epochs", "step", "0", "half", "0.35"]
)
def test_start(start, step: int) -> None:
    module = Lit()
    fit(module, [LatePhaseCallback(MEMBERS, start=start)])
    assert_trained_as(module, *plain_loop(start=step))


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "rank-one"},
        {"weights": "full", "base_gradient": "mean"},
        {"weights": [latephase.LoRA(2, 3.0)]},
        {"weights": [latephase.Normalization(), latephase.Parameters("*3.bias")], "noise": 0.1, "seed": 3},
        {"optimizer_state": "reset", "base_gradient": 0.3},
        {"accumulate": "in_place"},
        {"members": 1},
    ],
    ids=lambda o: " ".join(o),
)
@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_options_of_the_phase(options: dict, optimizer: str) -> None:
    module = Lit(optimizer)
    fit(module, [LatePhaseCallback(**{"members": MEMBERS, **options}, start=9)])
    tolerance = 1e-13 if options.get("accumulate") == "in_place" else 0.0
    assert_trained_as(module, *plain_loop(start=9, optimizer=optimizer, **options), tolerance)


@pytest.mark.parametrize("start", ["2e", 5, 0.5])
def test_accumulated_gradients(start) -> None:
    """Lightning also steps at the end of an epoch, on what is there: steps of 2, 2, 2 and 1 minibatches."""
    module = Lit()
    fit(module, [LatePhaseCallback(MEMBERS, start=start)], accumulate_grad_batches=2)
    step = 5 if start == 5 else 8
    assert_trained_as(module, *plain_loop(4 * EPOCHS, start=step, each=2))


def test_accumulation_that_changes() -> None:
    """One minibatch a step, from the third epoch on three: half of 7 + 7 + 3 + 3 steps."""
    module = Lit()
    schedule = pl.callbacks.GradientAccumulationScheduler({0: 1, 2: 3})
    callback = LatePhaseCallback(MEMBERS, start=0.5)
    started = []
    spy = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda trainer, *_: started.append((trainer.global_step, callback.late.phase))
    )
    fit(module, [schedule, callback, spy])
    assert started.index((11, "late")) == 10


@pytest.mark.parametrize(
    ("algorithm", "clip"),
    [("norm", partial(clip_grad_norm_, max_norm=0.1)), ("value", partial(clip_grad_value_, clip_value=0.02))],
)
def test_clipping(algorithm: str, clip) -> None:
    module = Lit()
    value = 0.1 if algorithm == "norm" else 0.02
    callback = LatePhaseCallback(MEMBERS, start=9)
    fit(module, [callback], gradient_clip_val=value, gradient_clip_algorithm=algorithm)
    assert_trained_as(module, *plain_loop(start=9, clip=clip))


def test_bfloat16_autocast() -> None:
    module = Lit(dtype=torch.float32)
    data = batches(dtype=torch.float32)
    fit(module, [LatePhaseCallback(MEMBERS, start=9)], Resumable(data), precision="bf16-mixed")
    assert_trained_as(module, *plain_loop(start=9, data=data, dtype=torch.float32, autocast=torch.bfloat16))


def test_64_bit_precision_plugin() -> None:
    module = Lit(dtype=torch.float32)
    data = batches(dtype=torch.float32)
    fit(module, [LatePhaseCallback(MEMBERS, weights="rank-one", start=9)], Resumable(data), precision="64-true")
    assert module.net[0].weight.dtype == torch.float64
    expected = Lit(dtype=torch.float32)
    expected.double()
    rule = torch.optim.SGD(expected.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-3)
    late = latephase.LatePhase(expected, MEMBERS, "rank-one")
    late.optimizer(rule)
    for step in range(STEPS):
        if step == 9:
            late.start()
        rule.zero_grad()
        x, y = data[step % PER_EPOCH]
        F.cross_entropy(expected.net(x.double()), y).backward()
        rule.step()
    late.collapse()
    assert_equal(dict(module.net.state_dict()), dict(expected.net.state_dict()))


@pytest.mark.parametrize("clip", [None, 0.1])
def test_gradient_scaler_with_an_inf(clip: float | None) -> None:
    """A step an epoch is skipped, in the middle of a round too; its member has its turn with the next minibatch."""
    data = batches(dtype=torch.float32)
    data[4] = (data[4][0] * 1e30, data[4][1])  # in float16, an infinity
    kwargs = {"init_scale": 2.0**10, "growth_interval": 5}
    module = Smooth(dtype=torch.float32)
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **kwargs))
    callback = LatePhaseCallback(MEMBERS, start=9)
    fit(module, [callback], Resumable(data), plugins=[plugin], gradient_clip_val=clip)
    scaler = torch.amp.GradScaler("cpu", **kwargs)
    net, late = plain_loop(
        start=9,
        net=smooth(torch.float32),
        data=data,
        autocast=torch.float16,
        scaler=scaler,
        clip=None if clip is None else partial(clip_grad_norm_, max_norm=clip),
    )
    assert late.rounds * MEMBERS + late.turn == STEPS - 9 - 3  # one was skipped in each of three epochs
    assert plugin.scaler.get_scale() == scaler.get_scale()
    assert_trained_as(module, net, late)


@pytest.mark.parametrize("kind", ["step", "epoch", "plateau"])
def test_schedules(kind: str) -> None:
    """The user's schedule is stepped as without the callback, and is never replaced."""
    make = {
        "step": lambda o: StepLR(o, 2, 0.9),
        "epoch": lambda o: CosineAnnealingLR(o, EPOCHS),
        "plateau": lambda o: ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.5),
    }[kind]
    made = []
    module = Lit(
        schedule={
            "make": lambda o: made.append(make(o)) or made[-1],
            "interval": "step" if kind == "step" else "epoch",
            "monitor": "loss",
        }
    )
    val = batches(2, seed=9)
    trainer = fit(module, [LatePhaseCallback(MEMBERS, start=9)], val=val)
    assert [config.scheduler for config in trainer.lr_scheduler_configs] == made

    schedules: list = []

    def schedule(rule):
        schedules.append(make(rule))

    def after_step(step: int, late: latephase.LatePhase, rule) -> None:
        if kind == "step":
            schedules[0].step()
        elif (step + 1) % PER_EPOCH == 0:
            late.model.eval()
            with torch.no_grad():
                loss = sum(F.cross_entropy(late.model(x), y) for x, y in val) / len(val)
            late.model.train()
            schedules[0].step(*([loss.float()] if kind == "plateau" else []))

    net, late = plain_loop(start=9, after_step=after_step, schedule=schedule)
    assert schedules[0].get_last_lr() == made[0].get_last_lr()
    assert schedules[0].get_last_lr()[0] < 0.05
    assert_trained_as(module, net, late)


class Stop(pl.Callback):
    """Stops as EarlyStopping does."""

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == 11:
            trainer.should_stop = True


class Clock(pl.callbacks.Timer):
    """What `max_time` makes, with a clock that counts steps."""

    steps = 0

    def time_elapsed(self, *_) -> float:
        return float(self.steps)

    def on_train_batch_end(self, trainer, *args) -> None:
        self.steps = trainer.global_step
        super().on_train_batch_end(trainer, *args)


@pytest.mark.parametrize("how", ["max_steps", "max_time", "Timer", "EarlyStopping", "should_stop"])
def test_however_fit_is_stopped_the_average_is_left(how: str) -> None:
    """In the middle of a round: the gradients of its first turns are dropped."""
    module, extra, options = Lit(), [], {}
    if how == "max_steps":
        steps, options = 11, {"max_steps": 11, "max_epochs": -1}
    elif how == "max_time":
        steps, options = 0, {"max_time": {"seconds": 0}, "max_epochs": -1}
    elif how == "Timer":
        steps, extra, options = 11, [Clock({"seconds": 11})], {"max_epochs": -1}
    elif how == "EarlyStopping":
        steps, extra = 14, [pl.callbacks.EarlyStopping("loss", patience=1, min_delta=1e9)]
    else:
        steps, extra = 11, [Stop()]
    trainer = fit(module, [LatePhaseCallback(MEMBERS, start=3), *extra], val=batches(1), **options)
    net, late = plain_loop(steps, start=3)
    assert trainer.global_step == steps
    assert late.turn != 0 or how == "max_time"
    assert_trained_as(module, net, late)


def manual_loop(count: int, start: int, steps: int = STEPS):
    net = network()
    rules = optimizers(net, count)
    late = latephase.LatePhase(net, MEMBERS)
    for rule in rules:
        late.optimizer(rule)
    for step in range(steps):
        if step == start:
            late.start()
        for rule in rules:
            rule.zero_grad()
        x, y = batches()[step % PER_EPOCH]
        F.cross_entropy(net(x), y).backward()
        for rule in rules:
            rule.step()
    return net, late


@pytest.mark.parametrize("start", ["2e", 14, 0.5])
@pytest.mark.parametrize(("count", "closures"), [(1, False), (1, True), (2, False)])
def test_manual_optimization(count: int, closures: bool, start) -> None:
    module = Manual(count, closures)
    fit(module, [LatePhaseCallback(MEMBERS, start=start)])
    assert_trained_as(module, *manual_loop(count, 14))


def test_manual_optimization_counts_as_max_steps_does() -> None:
    """Two optimizers make two steps of every minibatch: 20 steps are 10 minibatches, and half of them 5."""
    module = Manual(2)
    fit(module, [LatePhaseCallback(MEMBERS, start=0.5)], max_steps=20, max_epochs=-1)
    assert_trained_as(module, *manual_loop(2, 5, steps=10))


@pytest.mark.parametrize("manual", [False, True])
def test_auto_is_the_start_signal(manual: bool) -> None:
    module = Manual() if manual else Lit()
    callback = LatePhaseCallback(MEMBERS, start="auto")
    fit(module, [callback], accumulate_grad_batches=1)
    signal = latephase.StartSignal(MEMBERS, STEPS)
    net, rule = network(), None
    rule = optimizers(net, 1)[0] if manual else torch.optim.SGD(net.parameters(), 0.05, 0.9, 0, 5e-3, nesterov=True)
    for step in range(STEPS):
        rule.zero_grad()
        x, y = batches()[step % PER_EPOCH]
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        rule.step()
        if signal.update(loss, 0.05):
            break
    assert signal.started is not None
    assert callback._beginning.signal.state_dict() == signal.state_dict()
    assert_trained_as(module, *(manual_loop(1, signal.started) if manual else plain_loop(start=signal.started)))


def test_auto_sees_the_mean_loss_of_a_step() -> None:
    """Summed over the minibatches of a step, which Lightning has divided by their number."""
    told = []
    callback = LatePhaseCallback(MEMBERS, start="auto")

    class Spy(pl.Callback):
        def on_train_start(self, *_) -> None:
            due = callback._beginning.due
            callback._beginning.due = lambda step, loss=None, **k: told.append(loss) or due(step, loss, **k)

    module = Lit()
    fit(module, [callback, Spy()], accumulate_grad_batches=7, max_epochs=1)
    net = network()
    expected = sum(F.cross_entropy(net(x), y).item() for x, y in batches()) / 7
    (loss,) = (loss for loss in told if loss is not None)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_validation_sees_the_average() -> None:
    """Before the first step, before the start and after it: what is validated is what the loop averages."""
    module = Lit()
    trainer = fit(module, [LatePhaseCallback(MEMBERS, start=9)], val=batches(1), num_sanity_val_steps=1)
    seen = module.validated
    assert len(seen) == 1 + EPOCHS
    assert_equal(seen[0], values(network()))
    for epoch, found in enumerate(seen[1:]):
        net, _ = plain_loop(PER_EPOCH * (epoch + 1), start=9)
        assert_equal(found, values(net.eval()))
    assert trainer.lightning_module.training


@pytest.mark.parametrize("overridden", [False, True])
def test_validation_in_the_middle_of_a_step_changes_nothing(overridden: bool) -> None:
    """Every minibatch, between two that one step accumulates too."""

    class Own(Lit):
        def on_validation_model_train(self) -> None:
            self.train()

    module = (Own if overridden else Lit)()
    callback = LatePhaseCallback(MEMBERS, start=5)
    fit(module, [callback], val=batches(1), accumulate_grad_batches=2, val_check_interval=1)
    assert len(module.validated) == 1 + STEPS
    assert_trained_as(module, *plain_loop(4 * EPOCHS, start=5, each=2))


def test_frozen_layers_stay_in_eval_mode() -> None:
    """A BatchNorm in eval mode inside a training module is in that mode after validation too."""
    module = Lit()
    module.net[1].eval()
    with pytest.warns(UserWarning, match="eval mode"):
        fit(module, [LatePhaseCallback(MEMBERS, start=9)], val=batches(1))
    assert not module.net[1].training
    assert module.net[0].training
    assert torch.equal(module.net[1].running_mean, network()[1].running_mean)


def test_layers_made_in_configure_model_get_their_factors() -> None:
    class Lazy(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.net = None

        def configure_model(self) -> None:
            if self.net is None:
                self.net = network()

    module = Lazy()
    fit(module, [LatePhaseCallback(MEMBERS, weights="rank-one", start=9)])
    assert_trained_as(module, *plain_loop(start=9, weights="rank-one"))


def test_a_second_fit_is_a_new_phase() -> None:
    """With the same trainer and callback: its epochs go on, and so does its count of steps."""
    module, callback = Lit(), LatePhaseCallback(MEMBERS, start=0)
    trainer = fit(module, [callback], max_epochs=1)
    first = callback.late
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, Resumable(batches()))
    assert callback.late is not first
    assert trainer.global_step == 2 * PER_EPOCH
    # Its optimizers are new.
    net, late = plain_loop(PER_EPOCH, start=0)
    late.collapse()
    rule = torch.optim.SGD(net.parameters(), 0.05, 0.9, 0, 5e-3, nesterov=True)
    again = latephase.LatePhase(net, MEMBERS)
    again.optimizer(rule)
    again.start()
    for x, y in batches():
        rule.zero_grad()
        F.cross_entropy(net(x), y).backward()
        rule.step()
    assert_trained_as(module, net, again)


def test_after_an_exception_the_phase_is_whole() -> None:
    class Broken(Lit):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 11:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    module, callback = Broken(), LatePhaseCallback(MEMBERS, start=3)
    with pytest.raises(RuntimeError, match="broken"):
        fit(module, [callback])
    net, late = plain_loop(11, start=3)
    assert (callback.late.turn, callback.late.rounds) == (late.turn, late.rounds) == (2, 2)
    with pytest.raises(latephase.LatePhaseError, match=r"late\.collapse\(\)"):
        fit(module, [callback])
    callback.late.collapse()
    assert_trained_as(module, net, late)


def test_a_compiled_module() -> None:
    """Compiled once before the start and once after it; bit for bit the eager run."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    module = Lit()
    module.net.compile(backend=backend)
    fit(module, [LatePhaseCallback(MEMBERS, start=9)])
    assert len(compiled) <= 2
    assert_trained_as(module, *plain_loop(start=9))


def test_evaluation_alone() -> None:
    """The callback has nothing to do in validate, test and predict, before fit and after it."""
    module, callback = Lit(), LatePhaseCallback(MEMBERS, start=9)
    data = batches(2)
    trainer = pl.Trainer(**QUIET, max_epochs=EPOCHS, callbacks=[callback])
    trainer.validate(module, Resumable(data), verbose=False)
    assert callback.late is None
    assert_equal(module.validated[-1], values(network()))
    trainer.fit(module, Resumable(batches()))
    net, late = plain_loop(start=9)
    late.collapse()
    trainer.validate(module, Resumable(data), verbose=False)
    trainer.test(module, Resumable(data), verbose=False)
    assert_equal(module.validated[-2], values(net))
    assert_equal(module.validated[-1], values(net))
    outputs = trainer.predict(module, Resumable([x for x, _ in data]))
    net.eval()
    assert all(torch.equal(out, net(x)) for out, (x, _) in zip(outputs, data, strict=True))


def test_what_fit_leaves_exports() -> None:
    """A plain module: torch.export takes it as it takes one that was trained without the callback."""
    module = Lit()
    fit(module, [LatePhaseCallback(MEMBERS, weights="rank-one", start=9)])
    module.eval()
    module.trainer = None
    x = batches(1)[0][0]
    exported = torch.export.export(module.net, (x,)).module()
    assert torch.equal(exported(x), module(x))


# Lightning's advice on the loaders of an example that is to be short.
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_example_runs(capsys: pytest.CaptureFixture) -> None:
    """As a script; 97 % at the time of writing, a tenth by chance."""
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "lightning_digits.py"), run_name="__main__")
    said = re.search(r"500 held-out digits: (0\.\d+)", capsys.readouterr().out)
    assert float(said[1]) > 0.9
