"""The optimizers that a recipe can name."""

from __future__ import annotations

import torch
from torch import nn

from latephase.experiments.config import Training


def make_optimizer(training: Training, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer over all weights of a model.

    Args:
        training: Optimizer, learning rate, momentum or betas, and weight decay. AdamW decays weight matrices alone, as
            is usual for transformers; the others every weight.
        model: The model to train.

    Returns:
        The optimizer.
    """
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=training.lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            nesterov=training.nesterov and training.momentum > 0,
            fused=True,
        )
    first, second = training.betas
    if training.optimizer == "adam":
        return torch.optim.Adam(
            model.parameters(), lr=training.lr, betas=(first, second), weight_decay=training.weight_decay, fused=True
        )
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.lr, betas=(first, second), fused=True)
