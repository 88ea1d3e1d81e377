"""Late-phase weights in a plain PyTorch loop: five lines more than without, and a checkpoint at any moment."""

import io

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import latephase

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
data = TensorDataset(images, torch.tensor(digits.target))
train, test = torch.utils.data.random_split(data, [1400, len(data) - 1400], torch.Generator().manual_seed(0))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def accuracy(model: nn.Module) -> float:
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in DataLoader(test, batch_size=200))
    return right / len(test)


EPOCHS, START = 8, 5
model = network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
late = latephase.LatePhase(model, members=5, weights=["norm", "head"])
late.optimizer(optimizer)

for epoch in range(EPOCHS):
    if epoch == START:
        late.start()
    model.train()
    for x, y in DataLoader(train, batch_size=50, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    scheduler.step()
    model.eval()  # the average of the members
    print(f"epoch {epoch + 1}: {late.phase}, accuracy {accuracy(model):.4f}")

    # Three ordinary state dicts are a checkpoint, in the middle of a round too; the model's is the averaged model's.
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "late": late.state_dict()}, file)

model = late.collapse(check=images[:8])  # the same object, plain again
network().load_state_dict(model.state_dict())
print(f"one averaged network: {accuracy(model.eval()):.4f}")
