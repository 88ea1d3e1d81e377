"""The loop of timm's training script with late-phase weights: its optimizers, schedule, averages and checkpoints."""

import tempfile
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, dispatch_clip_grad
from torch.utils.data import DataLoader, TensorDataset

import latephase

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
data = TensorDataset(F.interpolate(images, 32), torch.tensor(digits.target))
train, test = torch.utils.data.random_split(data, [1000, len(data) - 1000], torch.Generator().manual_seed(0))
loader = DataLoader(train, batch_size=50, shuffle=True)
EPOCHS, START = 3, 2

model = timm.create_model("test_resnet", num_classes=10, in_chans=1)
optimizer = create_optimizer_v2(model, opt="lamb", lr=0.02, weight_decay=0.02)
scheduler, _ = create_scheduler_v2(
    optimizer, "cosine", num_epochs=EPOCHS, step_on_epochs=False, updates_per_epoch=len(loader)
)
late = latephase.LatePhase(model, members=4, weights=["norm", "head"])
late.optimizer(optimizer)
ema = ModelEmaV3(model, decay=0.95)


def accuracy(net) -> float:
    with torch.no_grad():
        return sum(int((net.eval()(x).argmax(1) == y).sum()) for x, y in DataLoader(test, batch_size=200)) / len(test)


with tempfile.TemporaryDirectory() as folder:
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=folder, recovery_dir=folder)
    updates = 0
    for epoch in range(EPOCHS):
        if epoch == START:
            late.start()
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            dispatch_clip_grad(model.parameters(), 1.0)
            optimizer.step()
            ema.update(model)  # of the averaged model, whose state dict it reads
            updates += 1
            scheduler.step_update(num_updates=updates)
        print(f"epoch {epoch + 1}: {late.phase}, accuracy {accuracy(model):.4f}, EMA {accuracy(ema.module):.4f}")
        saver.save_checkpoint(epoch, metric=accuracy(model))  # the averaged model
        torch.save(late.state_dict(), Path(folder) / "latephase.pt")  # what resuming needs beside it

late.collapse()
print(f"one averaged {type(model).__name__}: {accuracy(model):.4f}")
