"""Files of trainers and exported ones, whose libraries take seconds to import: how they are written and read."""

import io
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import latephase
from files_read import MEMBERS, RATE, Kind, network, phase


def _members_file(folder: Path) -> Path:
    from latephase.integrations._transformers_checkpoint import NAME, save_members

    save_members(folder, phase()[0].state_dict(), {}, {})
    return folder / NAME


def _from_members_file(path: Path) -> dict[str, Any]:
    from latephase.integrations._transformers_checkpoint import load_members

    saved = phase()[0].averaged_state_dict()
    model = network()
    late = latephase.LatePhase(model, members=MEMBERS, noise=0.1)
    late.optimizer(torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9))
    model.load_state_dict(saved)  # as the Trainer does before its callbacks are asked
    load_members(path, late)
    return late.state_dict()


def _fit(callback: Any, module: nn.Module, **options: Any) -> None:
    import lightning.pytorch as pl

    batches = [(torch.randn(6, 8, generator=torch.Generator().manual_seed(i)),) for i in range(4)]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[callback],
        max_epochs=2,
    )
    checkpoint, saved = options.get("checkpoint"), options.get("save")
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None), ckpt_path=checkpoint)
    if saved is not None:
        trainer.save_checkpoint(saved)


def _module(stop: int | None = None) -> nn.Module:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.saved = network(), None

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=RATE, momentum=0.9)

        def on_train_batch_end(self, *_: Any) -> None:
            if stop is not None and self.trainer.global_step == stop:
                self.trainer.save_checkpoint(self.saved)

    return Module()


def _lightning_checkpoint(folder: Path) -> Path:
    from latephase.integrations.lightning import LatePhaseCallback

    path = folder / "last.ckpt"
    module = _module(stop=4)
    module.saved = path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _fit(LatePhaseCallback(MEMBERS, start=1), module)
    return path


def _resumed_with_lightning(path: Path) -> dict[str, Any]:
    """What a run is after it went on from the checkpoint."""
    from latephase.integrations.lightning import LatePhaseCallback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = _module()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        _fit(LatePhaseCallback(MEMBERS, start=1), module, checkpoint=path)
    return dict(module.state_dict())


def _exported(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        from latephase.export import FORMATS
        from latephase.export import write as export

        path = folder / f"model{FORMATS[name].suffix}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            export(network().eval(), (torch.ones(3, 8),), path, name)
        return path

    return write


def _predicted(name: str) -> Callable[[Path], Any]:
    def read(path: Path) -> dict[str, Any]:
        from latephase.export import FORMATS

        x = torch.randn(5, 8, generator=torch.Generator().manual_seed(7))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = FORMATS[name].read(path, network().eval())(x)
        return {"outputs": [found] if isinstance(found, Tensor) else list(found)}

    return read


KINDS = [
    Kind("latephase.pt of transformers", _members_file, _from_members_file, cheap=False),
    Kind("Lightning checkpoint", _lightning_checkpoint, _resumed_with_lightning, abroad=True, cheap=False),
    *(
        Kind(f"export: {name}", _exported(name), _predicted(name), cheap=False)
        for name in ("safetensors", "export", "onnx", "torchscript", "quantised")
    ),
]
"""AOTInductor's files are archives like those of `export`, checked in the same way; compiling one takes a minute."""
