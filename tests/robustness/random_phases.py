"""Random settings of a phase: families, members, gamma, noise, optimizers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.optim import Optimizer

import latephase

FAMILIES: dict[str, Callable[[], Any]] = {
    "norm": lambda: "norm",
    "head": lambda: "head",
    "head-named": lambda: latephase.Head("head"),
    "full": lambda: "full",
    "biases": lambda: latephase.Parameters("*.bias"),
    "scales": lambda: latephase.Parameters("blocks.*.weight"),
    "stem": lambda: latephase.Parameters("stem.*"),
    "rank-one": lambda: "rank-one",
    "rank-one-all": lambda: latephase.RankOne(names="*"),
    "rank-one-linear": lambda: latephase.RankOne(nn.Linear),
    "lora": lambda: latephase.LoRA(2),
    "lora-frozen": lambda: latephase.LoRA(1, 2.0, train_base=False),
    "lora-factors": lambda: latephase.LoRA(2, average="factors", seed=3),
    "hypernetwork": lambda: "hypernetwork",
    "hypernetwork-few": lambda: latephase.Hypernetwork(names="*", templates=2),
    "hypernetwork-anew": lambda: latephase.Hypernetwork(names=["head", "stem"], keep=False),
}
# eps is large, so that a gradient that is zero but for rounding does not become a step of the size of the rate.
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-2),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-2, fused=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-2, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.003, eps=1e-2, momentum=0.5),
}


@dataclass(frozen=True)
class Settings:
    """The arguments of one phase, and the optimizers beside it."""

    families: tuple[str, ...]
    members: int
    gamma: str | float
    noise: float
    optimizers: tuple[str, ...]
    accumulate: str
    optimizer_state: str

    def attach(self, model: nn.Module, families: tuple[str, ...] | None = None) -> latephase.LatePhase:
        """The phase on a model; other families where these have been refused."""
        return latephase.LatePhase(
            model,
            self.members,
            [FAMILIES[name]() for name in families or self.families],
            self.noise,
            self.gamma,
            optimizer_state=self.optimizer_state,
            accumulate=self.accumulate,
        )

    def build(
        self, model: nn.Module, late: latephase.LatePhase, names: list[list[str]] | None = None
    ) -> list[Optimizer]:
        """The optimizers, which share the model's parameters out among them or have those of given names."""
        parameters, by_name = list(model.parameters()), dict(model.named_parameters())
        shares = [parameters[i :: len(self.optimizers)] for i in range(len(self.optimizers))]
        if names is not None:
            shares = [[by_name[name] for name in share] for share in names]
        pairs = zip(self.optimizers, shares, strict=True)
        return [late.optimizer(OPTIMIZERS[name](share)) for name, share in pairs if share]


@st.composite
def settings_of_phases(draw: st.DrawFn) -> Settings:
    """Arguments of phases, mostly such as work."""
    return Settings(
        tuple(draw(st.lists(st.sampled_from(list(FAMILIES)), min_size=1, max_size=2))),
        draw(st.sampled_from((3, 2, 1, 4, 8))),
        draw(st.sampled_from(("sum", "mean", 0.3))),
        draw(st.sampled_from((0.0, 0.0, 0.3))),
        tuple(draw(st.lists(st.sampled_from(list(OPTIMIZERS)), min_size=1, max_size=2))),
        draw(st.sampled_from(("copy", "copy", "in_place"))),
        draw(st.sampled_from(("copy", "reset"))),
    )
