"""What each of two processes trains with Lightning; test_lightning_ranks.py compares it with one process."""

import datetime
import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lit import QUIET, Lit, Manual, Resumable, Smooth
from torch import nn

import latephase
from latephase.integrations.lightning import LatePhaseCallback

WORLD, START, SIZE = 2, 8, 7
OPTIONS: dict[str, dict] = {
    "norm+head": {},
    "rank-one": {"weights": "rank-one"},
    "full mean": {"weights": "full", "base_gradient": "mean", "noise": 0.1},
}
SPREAD: dict[str, dict] = {"norm+head": {}, "rank-one": {"weights": "rank-one", "base_gradient": "mean"}}


def samples(count: int, seed: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Minibatches of eight."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 5, generator=generator, dtype=torch.float64), torch.randint(3, (8,), generator=generator))
        for _ in range(count)
    ]


def half(batch, rank: int):
    """A rank's part of a minibatch."""
    return tuple(t[4 * rank : 4 * rank + 4] for t in batch)


class Sharded(Smooth):
    """Sharded by its own `configure_model`."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if not isinstance(self.net, FSDPModule):
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.net[0], mesh=mesh)
            fully_shard(self.net, mesh=mesh)


def train(module: pl.LightningModule, callbacks: list, data: list, strategy=None, val=None, **options) -> pl.Trainer:
    strategy = DDPStrategy(cluster_environment=TorchElasticEnvironment()) if strategy is None else strategy
    settings = {**QUIET, "devices": WORLD, "max_epochs": 3, **options}
    ckpt = settings.pop("ckpt", None)
    settings.setdefault("use_distributed_sampler", False)
    trainer = pl.Trainer(**settings, strategy=strategy, callbacks=callbacks)
    trainer.fit(module, Resumable(data), None if val is None else Resumable(val), ckpt_path=ckpt)
    return trainer


def halves(rank: int) -> list:
    return [half(batch, rank) for batch in samples(SIZE)]


def same_member(rank: int, folder: str, name: str) -> dict:
    module = Smooth("adamw" if name == "rank-one" else "nesterov")
    train(module, [LatePhaseCallback(3, start=START, **OPTIONS[name])], halves(rank))
    return dict(module.net.state_dict())


def accumulated_and_clipped(rank: int, folder: str) -> dict:
    """Lightning leaves DDP unsynchronised between the minibatches of one step."""
    module = Smooth()
    callback = LatePhaseCallback(3, start=START)
    train(module, [callback], halves(rank), accumulate_grad_batches=2, gradient_clip_val=0.1)
    return dict(module.net.state_dict())


def by_hand(rank: int, folder: str) -> dict:
    """Manual optimization, two optimizers."""
    module = Manual(2)
    module.net[1] = nn.LayerNorm(6, dtype=torch.float64)
    train(module, [LatePhaseCallback(3, start=START)], halves(rank))
    return dict(module.net.state_dict())


def automatic(rank: int, folder: str) -> dict:
    """The ranks' losses differ, and they start at the same minibatch."""
    callback, module = LatePhaseCallback(3, start="auto"), Smooth()
    train(module, [callback], halves(rank))
    return {**module.net.state_dict(), "started": callback._beginning.signal.started}


def validated(rank: int, folder: str) -> dict:
    module = Smooth()
    train(module, [LatePhaseCallback(3, start=START)], halves(rank), val=[samples(1)[0]])
    return {f"{number}.{name}": value for number, seen in enumerate(module.validated) for name, value in seen.items()}


def saved(folder: str, what: str) -> ModelCheckpoint:
    return ModelCheckpoint(Path(folder) / what, "{step}", every_n_train_steps=1, save_top_k=-1)


def resumed(rank: int, folder: str, step: int) -> dict:
    whole = Smooth("adamw")
    callbacks = [LatePhaseCallback(3, start=START, weights="rank-one")]
    train(whole, [*callbacks, saved(folder, f"same{step}")], halves(rank), enable_checkpointing=True)
    module = Smooth("adamw")
    path = Path(folder) / f"same{step}" / f"step={step}.ckpt"
    train(module, [LatePhaseCallback(3, start=START, weights="rank-one")], halves(rank), ckpt=path)
    return {"whole": dict(whole.net.state_dict()), "resumed": dict(module.net.state_dict())}


def over_ranks(rank: int, folder: str, name: str, step: int | None = None) -> dict:
    """Rank r trains member turn * world + r, on minibatches of its own; `step`: resumed from there."""
    options = {"start": START, "members_over_ranks": True, **SPREAD[name]}
    data = samples(2 * SIZE, seed=6)[rank::WORLD]
    module = Lit()
    callback = LatePhaseCallback(4, **options)
    if step is None:
        train(module, [callback], data)
    else:
        train(Lit(), [callback, saved(folder, f"spread{step}")], data, enable_checkpointing=True)
        path = Path(folder) / f"spread{step}" / f"step={step}.ckpt"
        train(module, [LatePhaseCallback(4, **options)], data, ckpt=path)
    return dict(module.net.state_dict())


def pooled(rank: int, folder: str) -> dict:
    """Statistics that are recomputed at the end, over the data of all ranks."""
    module = Lit()
    train(module, [LatePhaseCallback(3, start=START, statistics="recompute")], halves(rank))
    return dict(module.net.state_dict())


def sharded(rank: int, folder: str, step: int | None = None, whole: bool = False, swa=False) -> dict:
    """ModelParallelStrategy with fully_shard; `step`: resumed from its own checkpoint, sharded or whole."""

    def strategy() -> ModelParallelStrategy:
        made = ModelParallelStrategy(WORLD, 1, save_distributed_checkpoint=not whole, process_group_backend="gloo")
        made.cluster_environment = TorchElasticEnvironment()
        return made

    module = Sharded("adamw")
    callbacks = [LatePhaseCallback(3, start=START, swa=swa)]
    if step is None:
        train(module, callbacks, halves(rank), strategy=strategy(), val=[samples(1)[0]])
    else:
        what = f"shards{step}{whole}"
        callbacks.append(saved(folder, what))
        train(Sharded("adamw"), callbacks, halves(rank), strategy=strategy(), enable_checkpointing=True)
        path = Path(folder) / what / f"step={step}.ckpt"
        train(module, [LatePhaseCallback(3, start=START, swa=swa)], halves(rank), strategy=strategy(), ckpt=path)
    found = {name: full(value) for name, value in module.net.state_dict().items()}
    for number, seen in enumerate(module.validated):
        found |= {f"{number}.{name}": full(value) for name, value in seen.items()}
    return found


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def refusal(rank: int, folder: str, what: str) -> str:
    """The message with which a set-up is refused, on every rank."""
    steps: list[int] = []
    spy = pl.callbacks.LambdaCallback(on_train_batch_start=lambda *_: steps.append(1))
    options = {
        "uneven members": {"members_over_ranks": True},
        "in place": {"accumulate": "in_place"},
        "sharded and over ranks": {"members_over_ranks": True, "members": 4},
        "sharded factors": {"weights": "rank-one"},
    }[what]
    strategy, module = None, Smooth()
    if what.startswith("sharded"):
        module = Sharded()
        strategy = ModelParallelStrategy(WORLD, 1, process_group_backend="gloo")
        strategy.cluster_environment = TorchElasticEnvironment()
    try:
        train(module, [LatePhaseCallback(**{"members": 3, "start": START, **options}), spy], halves(rank), strategy)
    except latephase.LatePhaseError as error:
        return f"{len(steps)} steps, {type(error).__name__}: {error}"
    return "accepted"


REFUSALS = {
    "uneven members": r"3 members cannot be shared evenly by 2 ranks",
    "in place": r"accumulate: .*2 ranks.*'copy'",
    "sharded and over ranks": r"members_over_ranks=True: FSDP2",
    "sharded factors": r"weights: FSDP2",
}


def scenarios() -> dict[str, Callable[[int, str], object]]:
    table: dict[str, Callable[[int, str], object]] = {
        "accumulated and clipped": accumulated_and_clipped,
        "by hand": by_hand,
        "auto": automatic,
        "validated": validated,
        "pooled": pooled,
        "sharded average": lambda r, f: sharded(r, f, swa="1e"),
        "sharded average resumed": lambda r, f: sharded(r, f, 17, swa="1e"),
        "sharded": sharded,
    }
    for name in OPTIONS:
        table[f"same {name}"] = lambda r, f, n=name: same_member(r, f, n)
    for name in SPREAD:
        table[f"spread {name}"] = lambda r, f, n=name: over_ranks(r, f, n)
    table["spread resumed"] = lambda r, f: over_ranks(r, f, "norm+head", 13)
    for step in (9, 10):
        table[f"resumed {step}"] = lambda r, f, s=step: resumed(r, f, s)
    for whole in (False, True):
        table[f"sharded resumed {whole}"] = lambda r, f, w=whole: sharded(r, f, 10, w)
    for what in REFUSALS:
        table[what] = lambda r, f, w=what: refusal(r, f, w)
    return table


def work(rank: int, folder: str) -> None:
    """Runs every scenario, and writes down what came of each."""
    warnings.simplefilter("ignore")  # Lightning's advice; the tests of one process make every warning an error
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    outcomes = {}
    for name, scenario in scenarios().items():
        try:
            outcomes[name] = scenario(rank, folder)
        except Exception:  # the test that asks for it shows it
            outcomes[name] = traceback.format_exc()
        torch.save(outcomes, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
