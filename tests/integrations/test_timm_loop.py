"""The loop of timm's training script with late-phase weights in it equals the reference: its optimizers and groups,
schedulers, clipping, averages, checkpoints and scaler."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV2, ModelEmaV3, NativeScaler, dispatch_clip_grad
from torch import nn

import latephase
from cases import assert_matches, assert_same
from latephase.reference import Reference

MODELS = {"resnet": ("test_resnet", {}), "vit": ("test_vit", {"img_size": 32, "embed_dim": 16, "depth": 2})}
START, STEPS = 2, 9


def network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    kind, options = MODELS[name]
    return timm.create_model(kind, num_classes=3, in_chans=1, **options).to(dtype)


def batches(dtype: torch.dtype = torch.float64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(4, 1, 32, 32, generator=draw, dtype=torch.float64).to(dtype),
            torch.randint(3, (4,), generator=draw),
        )
        for _ in range(STEPS)
    ]


def optimizer_of(model: nn.Module, opt: str, **options) -> torch.optim.Optimizer:
    return create_optimizer_v2(model, opt=opt, lr=0.01, weight_decay=0.05, **options)


def schedule(optimizer):
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=3, warmup_epochs=1, warmup_lr=1e-3, step_on_epochs=False, updates_per_epoch=3
    )
    return scheduler


@pytest.mark.parametrize(
    ("name", "opt", "options"),
    [
        ("resnet", "momentum", {}),
        ("resnet", "lamb", {"max_grad_norm": None}),
        ("vit", "adamw", {"layer_decay": 0.7}),
        ("vit", "adan", {}),
        ("vit", "lion", {}),
    ],
)
def test_the_scripts_loop_equals_the_reference(name: str, opt: str, options: dict) -> None:
    """Groups by weight decay and depth, a rate a step, clipping by norm or adaptively; lamb counts in groups.

    Lamb clips inside its step too, the member and, on the last turn, the base weights together: not compared.
    """
    model, theirs = network(name), network(name)
    optimizer, clock = optimizer_of(model, opt, **options), optimizer_of(theirs, opt, **options)
    late = latephase.LatePhase(model, members=3)
    late.optimizer(optimizer)
    judge = Reference(theirs, clock, late.late_names(), 3)
    schedulers = schedule(optimizer), schedule(clock)
    mode, value = ("agc", 0.05) if opt in ("momentum", "adan") else ("norm", 1.0)
    for update, (x, y) in enumerate(batches()):
        if update == START:
            late.start()
            judge.start()
            for each in (*judge._base_optimizers, *(one for row in judge._late_optimizers for one in row)):
                each.defaults.update(clock.defaults)  # where Lamb looks up whether it clips
        for scheduler in schedulers:
            scheduler.step_update(num_updates=update)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        dispatch_clip_grad(model.parameters(), value, mode=mode)
        optimizer.step()
        judge.step(
            lambda m, x=x, y=y: F.cross_entropy(m(x), y), clip=lambda ps: dispatch_clip_grad(ps, value, mode=mode)
        )
    assert_matches(late, judge, 1e-9 if opt == "lamb" else 1e-11)


def trained(model, late, optimizer, steps, each=lambda: None) -> None:
    data = batches()
    for update in steps:
        if update == START:
            late.start()
        x, y = data[update]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        each()


@pytest.mark.parametrize(
    ("kind", "made", "weights"),
    [
        (ModelEmaV2, 0, ["norm", "rank-one"]),
        (ModelEmaV3, START, ["norm", "head"]),
        (ModelEmaV2, 4, ["norm", "head"]),
        (ModelEmaV3, 4, ["norm", "head"]),
    ],
)
def test_timms_averages_are_of_the_averaged_model(kind, made: int, weights: list[str]) -> None:
    """ModelEma deep-copies the model and reads state dicts, with the buffers: pytorch/pytorch#65495.

    pytorch/pytorch#69413, parametrized modules and copies: with factors, it is made before these are.
    """
    model = network("resnet")
    ema = kind(model, decay=0.8) if made == 0 else None
    late = latephase.LatePhase(model, members=3, weights=weights)
    optimizer = late.optimizer(optimizer_of(model, "momentum"))
    trained(model, late, optimizer, range(made))
    if ema is None:
        ema = kind(model, decay=0.8)
    expected = late.averaged_state_dict()

    def update() -> None:
        ema.update(model)
        for name, value in late.averaged_state_dict().items():
            # V2 averages counters too, and its state rounds them; they play no part.
            expected[name] = expected[name] * 0.8 + value * 0.2 if value.is_floating_point() else value

    trained(model, late, optimizer, range(made, STEPS), update)
    floats = {name for name, value in expected.items() if value.is_floating_point()}
    ours, plain = dict(ema.module.state_dict()), network("resnet")
    assert list(ours) == list(plain.state_dict())
    assert_same({n: ours[n] for n in floats}, {n: expected[n] for n in floats}, 1e-12)
    plain.load_state_dict(ours)
    x = batches()[0][0]
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(x), ema.module.eval()(x), rtol=1e-11, atol=1e-11)


def test_timms_checkpoint_is_the_averaged_model_and_resumes(tmp_path: Path) -> None:
    """CheckpointSaver's file holds the average; with the phase's state beside it the script's resume goes on."""

    def fresh():
        model = network("resnet")
        late = latephase.LatePhase(model, members=3)
        return model, late, late.optimizer(optimizer_of(model, "momentum"))

    model, late, optimizer = fresh()
    saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    trained(model, late, optimizer, range(4))
    average = late.averaged_state_dict()
    saver.save_checkpoint(0, metric=0.5)
    torch.save(late.state_dict(), tmp_path / "latephase.pt")
    trained(model, late, optimizer, range(4, STEPS))

    saved = torch.load(tmp_path / "last.pth.tar", weights_only=True)
    assert_same(saved["state_dict"], dict(average))
    network("resnet").load_state_dict(saved["state_dict"])
    again, resumed, theirs = fresh()
    timm.models.load_checkpoint(again, str(tmp_path / "last.pth.tar"))
    theirs.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(torch.load(tmp_path / "latephase.pt", weights_only=True))
    assert (resumed.phase, resumed.turn) == ("late", 2)
    trained(again, resumed, theirs, range(4, STEPS))
    assert_same(dict(again.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("bad", [3, 4])
def test_timms_scaler_with_an_inf(bad: int) -> None:
    """NativeScaler unscales, clips and steps; an overflow in the middle or at the end of a round repeats the turn."""
    model, theirs = network("vit", torch.float32), network("vit", torch.float32)
    optimizer, clock = optimizer_of(model, "adamw"), optimizer_of(theirs, "adamw")
    late = latephase.LatePhase(model, members=3)
    late.optimizer(optimizer)
    judge = Reference(theirs, clock, late.late_names(), 3)
    scaler = NativeScaler(device="cpu")
    for update, (x, y) in enumerate(batches(torch.float32)):
        if update == START:
            late.start()
            judge.start()
        factor = float("inf") if update == bad else 1.0
        optimizer.zero_grad()
        scaler(F.cross_entropy(model(x), y) * factor, optimizer, clip_grad=1.0, parameters=model.parameters())
        judge.step(
            lambda m, x=x, y=y, factor=factor: F.cross_entropy(m(x), y) * factor,
            clip=lambda ps: dispatch_clip_grad(ps, 1.0),
        )
    assert late.rounds * 3 + late.turn == STEPS - START - 1
    assert_matches(late, judge, 2e-5)


def test_forward_features_and_a_new_head() -> None:
    """Ways into a timm model that pass by its forward: the average in eval mode, the member of the turn in training."""
    model = network("vit")
    late = latephase.LatePhase(model, members=2, noise=0.3)
    late.optimizer(optimizer_of(model, "adamw"))
    late.start()
    plain = network("vit")
    plain.load_state_dict(late.averaged_state_dict())
    x = batches()[0][0]
    with torch.no_grad():
        for part in ("forward_features", "forward"):
            ours, theirs = getattr(model.eval(), part)(x), getattr(plain.eval(), part)(x)
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
            assert not torch.equal(getattr(model.train(), part)(x), theirs)
    late.collapse()
    model.reset_classifier(5)
    assert model(x).shape == (4, 5)
