"""Late-phase weights in a Lightning Trainer: one callback, and nothing else changes. Seconds on one core.

Run it: python examples/lightning_digits.py
"""

import logging
import tempfile

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from latephase.integrations.lightning import LatePhaseCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Digits(pl.LightningModule):
    """A small convolutional network, as one writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, 10) of images (N, 1, 8, 8)."""
        return self.net(images)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """The loss of a minibatch."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        """Accuracy: from the start on that of the averaged model."""
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> dict:
        """Momentum and a cosine; the callback needs nothing here."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(epochs: int = 10) -> float:
    """Train, and give the accuracy of the averaged model on held-out digits."""
    pl.seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels))
    train, held_out = torch.utils.data.random_split(data, [1297, 500])
    module = Digits()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=epochs,
            callbacks=[LatePhaseCallback(members=5, start=0.6), ModelCheckpoint(folder)],
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(train, 32, shuffle=True), DataLoader(held_out, 500))
        # Every checkpoint is one of the plain module, with the averaged weights; no callback is needed to load it.
        loaded = Digits.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    images, labels = next(iter(DataLoader(held_out, 500)))
    with torch.no_grad():
        return (loaded.eval()(images).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    print(f"accuracy of the averaged model on 500 held-out digits: {main():.3f}")
