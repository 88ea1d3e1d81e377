"""Lightning's own checkpoints: resumed in the middle of a round, loaded by the plain module, saved in validation."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lit import (
    EPOCHS,
    MEMBERS,
    OWN_WARNINGS,
    PER_EPOCH,
    QUIET,
    Lit,
    Resumable,
    Smooth,
    assert_equal,
    assert_trained_as,
    batches,
    fit,
    plain_loop,
    values,
)
from torch.optim.lr_scheduler import LambdaLR

import latephase
from latephase.integrations.lightning import LatePhaseCallback

pytestmark = [pytest.mark.filterwarnings(warning) for warning in OWN_WARNINGS]

START = 9
SAVING = {"enable_checkpointing": True}


def every_step(folder: Path, steps: int = 1) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=steps, save_top_k=-1)


def decay(optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 0.97**step)


DECAY = {"make": decay, "interval": "step"}


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("nesterov", {"noise": 0.1}),
        ("adamw", {"weights": "rank-one"}),
        ("adamw", {"weights": [latephase.LoRA(2, 3.0), "norm"], "optimizer_state": "reset"}),
    ],
    ids=["norm+head", "rank-one", "lora"],
)
def test_resumed_equals_uninterrupted(tmp_path: Path, optimizer: str, options: dict) -> None:
    """From before the start, from the start, from every turn of a round and the ends of epochs; bit for bit."""

    def run(**more) -> Lit:
        module = Lit(optimizer, DECAY)
        fit(module, [LatePhaseCallback(MEMBERS, start=START, **options), *more.pop("callbacks", [])], **more)
        return module

    whole = run(callbacks=[every_step(tmp_path)], **SAVING)
    net, late = plain_loop(start=START, optimizer=optimizer, schedule=decay, **options)
    assert_trained_as(whole, net, late)
    for step in (5, 9, 10, 11, 12, 14, 20):
        resumed = run(ckpt=tmp_path / f"step={step}.ckpt")
        assert_equal(dict(resumed.state_dict()), dict(whole.state_dict()))


# Lightning-AI/pytorch-lightning#11665: resuming inside SWA died on 'lr_lambdas', because the schedule had been swapped.
@pytest.mark.parametrize("every", [None, 4])
def test_resumed_in_the_middle_of_weight_averaging(tmp_path: Path, every: int | None) -> None:
    def run(**more) -> tuple[Lit, pl.Trainer, LatePhaseCallback]:
        module = Lit("adamw", DECAY)
        callback = LatePhaseCallback(MEMBERS, start=START, swa="1e", swa_every=every)
        return module, fit(module, [callback, *more.pop("callbacks", [])], **more), callback

    whole, trainer, _ = run(callbacks=[every_step(tmp_path)], **SAVING)
    assert isinstance(trainer.lr_scheduler_configs[0].scheduler, LambdaLR)
    taken = []

    def after_step(step: int, late: latephase.LatePhase, _) -> None:
        if step + 1 > PER_EPOCH and (step + 1) % (every or PER_EPOCH) == 0:
            taken.append(late.averaged_state_dict())

    plain_loop(start=START, optimizer="adamw", schedule=decay, after_step=after_step)
    assert len(taken) == (3 if every is None else 6)
    mean = {n: (sum(t[n].double() for t in taken) / len(taken)).to(v.dtype) for n, v in taken[-1].items()}
    mean["1.num_batches_tracked"] = taken[-1]["1.num_batches_tracked"]
    assert_equal(dict(whole.net.state_dict()), mean)
    for step in (5, 13, 14, 17, 21, 28):
        resumed, trainer, callback = run(ckpt=tmp_path / f"step={step}.ckpt")
        assert callback._snapshots.count == len(taken)
        assert_equal(dict(resumed.state_dict()), dict(whole.state_dict()))


def test_resumed_while_the_signal_watches(tmp_path: Path) -> None:
    def run(**more) -> tuple[Lit, LatePhaseCallback]:
        module, callback = Lit(), LatePhaseCallback(MEMBERS, start="auto")
        fit(module, [callback, *more.pop("callbacks", [])], **more)
        return module, callback

    whole, callback = run(callbacks=[every_step(tmp_path)], **SAVING)
    started = callback._beginning.signal.started
    for step in (3, started - 1, started, started + 1):
        resumed, other = run(ckpt=tmp_path / f"step={step}.ckpt")
        assert other._beginning.state_dict() == callback._beginning.state_dict()
        assert_equal(dict(resumed.state_dict()), dict(whole.state_dict()))


def test_resumed_with_manual_optimization(tmp_path: Path) -> None:
    class Two(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[0].parameters(), 0.05, 0.9), torch.optim.Adam(self.net[1:].parameters())]

        def training_step(self, batch, batch_idx):
            for rule in self.optimizers():
                rule.zero_grad()
            self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
            for rule in self.optimizers():
                rule.step()

    def run(**more) -> Lit:
        module = Two()
        fit(module, [LatePhaseCallback(MEMBERS, start=START), *more.pop("callbacks", [])], **more)
        return module

    whole = run(callbacks=[every_step(tmp_path, 2)], **SAVING)
    for batch in (5, 9, 10, 11):
        assert_equal(dict(run(ckpt=tmp_path / f"step={2 * batch}.ckpt").state_dict()), dict(whole.state_dict()))


def test_resumed_with_a_gradient_scaler(tmp_path: Path) -> None:
    data = batches(dtype=torch.float32)
    data[4] = (data[4][0] * 1e30, data[4][1])

    def run(**more) -> Lit:
        module = Smooth(dtype=torch.float32)
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5))
        callbacks = [LatePhaseCallback(MEMBERS, start=START), *more.pop("callbacks", [])]
        fit(module, callbacks, Resumable(data), plugins=[plugin], **more)
        return module

    whole = run(callbacks=[every_step(tmp_path)], **SAVING)
    for step in (11, 12, 13):
        assert_equal(dict(run(ckpt=tmp_path / f"step={step}.ckpt").state_dict()), dict(whole.state_dict()))


# mir-group/nequip#590: a checkpoint was saved while weights were swapped for validation.
def test_a_checkpoint_of_the_validation_has_what_was_validated_and_resumes(tmp_path: Path) -> None:
    def run(**more) -> Lit:
        module = Lit()
        callbacks = [LatePhaseCallback(MEMBERS, start=START), *more.pop("callbacks", [])]
        fit(module, callbacks, val=batches(1), val_check_interval=1, **more)
        return module

    saving = ModelCheckpoint(tmp_path, "{step}", monitor="loss", save_top_k=-1, save_on_train_epoch_end=False)
    whole = run(callbacks=[saving], **SAVING)
    for step in (10, 11, 13):
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        validated = whole.validated[step]  # the first is of the sanity check
        assert_equal(saved["state_dict"], {name: validated[name.removeprefix("net.")] for name in Lit().state_dict()})
        assert_equal(dict(run(ckpt=tmp_path / f"step={step}.ckpt").state_dict()), dict(whole.state_dict()))


def test_the_plain_module_loads_any_checkpoint(tmp_path: Path) -> None:
    """Keys and their order are the plain module's; the callback is not needed. A rank-one factor is folded in."""
    module = Lit()
    fit(module, [LatePhaseCallback(MEMBERS, weights="rank-one", start=START), every_step(tmp_path)], **SAVING)
    for step in (5, 11, 12):
        path = tmp_path / f"step={step}.ckpt"
        assert list(torch.load(path, weights_only=True)["state_dict"]) == list(Lit().state_dict())
        loaded = Lit.load_from_checkpoint(path)
        _, late = plain_loop(step, start=START, weights="rank-one")
        assert_equal(dict(loaded.net.state_dict()), dict(late.averaged_state_dict()))


def test_evaluation_of_a_checkpoint_needs_no_members(tmp_path: Path) -> None:
    """`test(ckpt_path=...)`, with the callback in the trainer and without it."""
    module, callback = Lit(), LatePhaseCallback(MEMBERS, start=START)
    trainer = fit(module, [callback, every_step(tmp_path)], **SAVING)
    _, late = plain_loop(11, start=START)
    trainer.test(module, Resumable(batches(1)), ckpt_path=tmp_path / "step=11.ckpt", verbose=False)
    late.model.eval()
    assert_equal(module.validated[-1], values(late.model))
    other = Lit()
    alone = pl.Trainer(**QUIET)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        alone.test(other, Resumable(batches(1)), ckpt_path=tmp_path / "step=11.ckpt", verbose=False)
    assert_equal(other.validated[-1], values(late.model))


@pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available")
def test_resumed_after_an_exception(tmp_path: Path) -> None:
    class Broken(pl.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            if trainer.global_step == 11:
                raise RuntimeError("broken")

    saving = OnExceptionCheckpoint(tmp_path)
    with pytest.raises(RuntimeError, match="broken"):
        fit(Lit(), [LatePhaseCallback(MEMBERS, start=START), Broken(), saving], **SAVING)
    module = Lit()
    fit(module, [LatePhaseCallback(MEMBERS, start=START)], ckpt=saving.ckpt_path)
    assert_trained_as(module, *plain_loop(start=START))


def test_what_is_saved_after_fit_is_the_average_and_trains_on(tmp_path: Path) -> None:
    """There are no members left in it: with more epochs they start anew, from the average."""
    path = tmp_path / "last.ckpt"
    trainer = fit(Lit(), [LatePhaseCallback(MEMBERS, start=START)])
    trainer.save_checkpoint(path)
    net, late = plain_loop(start=START)
    average = late.averaged_state_dict()
    module = Lit()
    fit(module, [LatePhaseCallback(MEMBERS, start=START)], ckpt=path)  # nothing left to train
    assert_equal(dict(module.net.state_dict()), dict(average))
    module = Lit()
    fit(module, [LatePhaseCallback(MEMBERS, start=START)], ckpt=path, max_epochs=EPOCHS + 1)
    rule = late._rounds.steps[0].optimizer
    late.collapse()
    again = latephase.LatePhase(net, MEMBERS)
    again.optimizer(rule)
    again.start()
    for x, y in batches():
        rule.zero_grad()
        F.cross_entropy(net(x), y).backward()
        rule.step()
    assert_trained_as(module, net, again)


# ACEsuit/mace#172: averaging was to start from a run that had none.
def test_a_plain_checkpoint_trains_on_with_members(tmp_path: Path) -> None:
    """The callback is new to the run: members start at once, from what was trained."""
    fit(Lit(), [every_step(tmp_path)], **SAVING)
    module = Lit()
    fit(module, [LatePhaseCallback(MEMBERS, start=5)], ckpt=tmp_path / "step=11.ckpt")
    assert_trained_as(module, *plain_loop(start=11))


def test_a_checkpoint_of_other_members_is_refused_at_set_up(tmp_path: Path) -> None:
    fit(Lit(), [LatePhaseCallback(MEMBERS, start=START), every_step(tmp_path, 11)], **SAVING)
    module = Lit()
    with pytest.raises(latephase.LatePhaseValueError, match="3 members, this phase has 4"):
        fit(module, [LatePhaseCallback(4, start=START)], ckpt=tmp_path / "step=11.ckpt")
    assert not hasattr(module.train, "members_share_the_model")


@pytest.mark.parametrize("start", [START, "auto"])
def test_a_late_phase_goes_on_in_a_run_of_another_length(tmp_path: Path, start) -> None:
    """Its start is past, so that it need not fit to the new run."""
    fit(Lit(), [LatePhaseCallback(MEMBERS, start=start), every_step(tmp_path)], **SAVING)
    module = Lit()
    fit(
        module,
        [LatePhaseCallback(MEMBERS, start=99 if start == START else start)],
        max_epochs=5,
        ckpt=tmp_path / "step=20.ckpt",
    )
    started = START if start == START else latest(tmp_path)
    assert_trained_as(module, *plain_loop(5 * PER_EPOCH, start=started))


def latest(folder: Path) -> int:
    """When the signal of a run started it."""
    state = torch.load(folder / "step=20.ckpt", weights_only=True)["callbacks"]["LatePhaseCallback"]
    return state["beginning"]["started"]


def test_a_refusal_after_the_members_were_loaded_leaves_the_plain_module(tmp_path: Path) -> None:
    fit(Lit(), [LatePhaseCallback(MEMBERS, start=START), every_step(tmp_path, 11)], **SAVING)
    module = Lit()
    with pytest.raises(latephase.LatePhaseValueError, match=r"swa: .*ends after"):
        fit(module, [LatePhaseCallback(MEMBERS, start=START, swa=99)], ckpt=tmp_path / "step=11.ckpt")
    _, late = plain_loop(11, start=START)
    assert_equal(dict(module.net.state_dict()), dict(late.averaged_state_dict()))
    assert not hasattr(module.train, "members_share_the_model")


# Lightning-AI/pytorch-lightning#14866: after SWA the accuracy was that of wrong statistics; mosaicml/composer#624: SWA
# that ends in the last epoch never refreshes them; Lightning-AI/pytorch-lightning#17245: the fake epoch that did broke
# the gradient scaler.
@pytest.mark.parametrize("swa", [False, "3e"], ids=["average", "swa"])
@pytest.mark.parametrize("scaler", [False, True], ids=["float64", "scaler"])
def test_recomputed_statistics_are_those_of_the_training_data(swa, scaler: bool) -> None:
    dtype = torch.float32 if scaler else torch.float64
    module, data, options = Lit(dtype=dtype), batches(dtype=dtype), {}
    if scaler:
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
        options = {"plugins": [plugin]}
    callback = LatePhaseCallback(MEMBERS, start=START, swa=swa, statistics="recompute")
    fit(module, [callback], Resumable(data), **options)
    net, late = plain_loop(
        start=START,
        data=data,
        dtype=dtype,
        autocast=torch.float16 if scaler else None,
        scaler=torch.amp.GradScaler("cpu", init_scale=1024.0) if scaler else None,
    )
    late.collapse("mean")
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(dict(module.net.named_parameters())[name], parameter, rtol=0, atol=0)
    with torch.no_grad(), torch.autocast("cpu", torch.float16, enabled=scaler):
        hidden = net[0](torch.cat([x for x, _ in data])).double()
    tolerance = 1e-6 if scaler else 1e-14
    norm = module.net[1]
    torch.testing.assert_close(norm.running_mean.double(), hidden.mean(0), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(norm.running_var.double(), hidden.var(0), rtol=tolerance, atol=tolerance)


def test_recomputation_calls_the_module_as_told() -> None:
    class Named(Lit):
        def forward(self, features, scale):
            return self.net(features * scale)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch["features"], 2.0), batch["target"])

    data = [{"features": x, "target": y} for x, y in batches()]
    module = Named()
    callback = LatePhaseCallback(
        MEMBERS, start=START, statistics="recompute", forward=lambda module, batch: module(batch["features"], 2.0)
    )
    fit(module, [callback], Resumable(data), limit_train_batches=5)
    hidden = module.net[0](2.0 * torch.cat([x for x, _ in batches()[:5]])).detach()
    torch.testing.assert_close(module.net[1].running_mean, hidden.mean(0), rtol=1e-14, atol=1e-14)


def test_plain_mean_of_statistics() -> None:
    module = Lit()
    fit(module, [LatePhaseCallback(MEMBERS, start=START, statistics="mean")])
    net, late = plain_loop(start=START)
    late.collapse("mean")
    assert_equal(dict(module.net.state_dict()), dict(net.state_dict()))
    _, late = plain_loop(start=START)
    assert not torch.equal(module.net[1].weight, late.averaged_state_dict()["1.weight"])
