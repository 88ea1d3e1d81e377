"""A text classifier in the Hugging Face Trainer: one callback more, and nothing else."""

import tempfile

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from latephase.integrations.transformers import LatePhaseCallback

torch.manual_seed(0)
tokens = torch.randint(4, 60, (512, 12))
labels = (tokens < 32).sum(1) > 6  # more words of the first half of the vocabulary than of the second
data = [{"input_ids": row, "labels": int(label)} for row, label in zip(tokens, labels, strict=True)]

config = BertConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=2
)
model = BertForSequenceClassification(config)


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            folder,
            num_train_epochs=4,
            per_device_train_batch_size=16,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=data[:384],
        eval_dataset=data[384:],
        compute_metrics=accuracy,
        callbacks=[LatePhaseCallback(members=5, weights=["norm", "head"], start="2e")],
    )
    trainer.train()
    trainer.save_model(folder)  # an ordinary BERT

    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        outputs = [m.eval()(input_ids=tokens[:4]).logits for m in (model, loaded)]
    print(f"{type(loaded).__name__}, largest difference {float((outputs[0] - outputs[1]).abs().max()):.1e}")
