"""The scheme without the library: K networks that share their base weights, and K + 1 optimizers."""

import argparse
import copy

import torch
from torch import nn
from torch.nn import functional

from throughput import Training


class Naive:
    """As the authors' code does it: one member a minibatch; the base weights step once a round, on the sum.

    Args:
        options: those of `Training`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        plain = Training(options, "plain")
        self.batches, self.done = plain.batches, 0
        late = {
            parameter
            for module in plain.model.modules()
            if isinstance(module, (nn.BatchNorm2d, nn.Linear))
            for parameter in module.parameters()
        }
        base = [parameter for parameter in plain.model.parameters() if parameter not in late]
        shared = {id(parameter): parameter for parameter in base}
        self.members = nn.ModuleList(copy.deepcopy(plain.model, dict(shared)) for _ in range(options.members))
        settings = dict(plain.optimizer.defaults)
        self.base = torch.optim.SGD(base, **settings)
        known = set(base)
        self.own = [torch.optim.SGD([p for p in m.parameters() if p not in known], **settings) for m in self.members]

    def step(self) -> None:
        """One minibatch of the member whose turn it is."""
        turn = self.done % len(self.members)
        x, y = self.batches[self.done % len(self.batches)]
        self.done += 1
        if turn == 0:
            self.base.zero_grad()
        self.own[turn].zero_grad()
        functional.cross_entropy(self.members[turn](x), y).backward()
        self.own[turn].step()
        if turn == len(self.members) - 1:
            self.base.step()
