"""An image classifier with BatchNorm in the Hugging Face Trainer, interrupted and resumed in the middle of a round."""

import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
)

from latephase.integrations.transformers import LatePhaseCallback

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
data = [{"pixel_values": x, "labels": int(y)} for x, y in zip(images, digits.target, strict=True)]


def trainer(folder: str) -> Trainer:
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10
    )
    return Trainer(
        model=ResNetForImageClassification(config),
        args=TrainingArguments(
            folder,
            max_steps=60,
            per_device_train_batch_size=32,
            learning_rate=5e-3,
            save_strategy="steps",
            save_steps=40,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=data[:1400],
        eval_dataset=data[1400:],
        callbacks=[LatePhaseCallback(members=3, weights=["norm", "head"], start=30)],
    )


with tempfile.TemporaryDirectory() as folder:
    through = trainer(folder)
    through.train()
    resumed = trainer(folder)
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-40")  # ten turns after the start, in the fourth round
    same = all(torch.equal(a, b) for a, b in zip(through.model.parameters(), resumed.model.parameters(), strict=True))
    print(f"resumed equals uninterrupted: {same}")

    resumed.save_model(folder)
    loaded = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        right = loaded(pixel_values=images[1400:]).logits.argmax(1) == torch.tensor(digits.target[1400:])
    print(f"{type(loaded).__name__}: test accuracy {right.float().mean():.4f}")
