"""Late-phase weights with Accelerate: `prepare`, accumulation, clipping, and a checkpoint in the middle of a round."""

import tempfile

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import latephase

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
loader = DataLoader(data, batch_size=32, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

late = latephase.LatePhase(model, members=5, weights=["norm", "head"])
late.optimizer(optimizer)
accelerator.register_for_checkpointing(late)

for epoch in range(4):
    if epoch == 2:
        late.start()
    model.train()
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(x), y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    print(f"epoch {epoch + 1}: {late.phase}, round {late.rounds}, turn {late.turn}, loss {loss.item():.3f}")

with tempfile.TemporaryDirectory() as folder:
    accelerator.save_state(folder)  # the averaged model, the optimizer, and the members
    accelerator.load_state(folder)

model = accelerator.unwrap_model(late.collapse())
with torch.no_grad():
    right = (model.eval()(data.tensors[0]).argmax(1) == data.tensors[1]).float().mean()
print(f"one averaged network: training accuracy {right:.4f}")
