"""Random small models: every kind of layer that late-phase weights meet, in any order, tied and frozen in places."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

WIDTH, LENGTH, TOKENS, CLASSES = 4, 3, 3, 3
"""TOKENS equals CLASSES, so that a head may be tied to the embedding."""


class Together(nn.Module):
    """Several modules on one input, their outputs added: a residual block with an identity, else a branch."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.parts]).sum(0)


class ChannelsFirst(nn.Module):
    """A layer of (N, C, L) among those of (N, L, C)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class First(nn.Module):
    """A recurrent layer's outputs without its states."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(x)[0]


class Attention(nn.Module):
    """Self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x, need_weights=False)[0]


NORMS = {
    "bn": {},
    "bn-plain": {"affine": False},
    "bn-batch": {"track_running_stats": False},
    "bn-cumulative": {"momentum": None},
    "bn-plain-cumulative": {"affine": False, "momentum": None},
}
Leaf = Callable[[], nn.Module]
_ACTS: dict[str, Leaf] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def _norms(of: type[nn.Module], wrap: Callable[[nn.Module], nn.Module] = lambda module: module) -> dict[str, Leaf]:
    return {name: lambda options=options: wrap(of(WIDTH, **options)) for name, options in NORMS.items()}


LEAVES: dict[str, dict[str, Leaf]] = {
    "vector": {
        **_ACTS,
        **_norms(nn.BatchNorm1d),
        "linear": lambda: nn.Linear(WIDTH, WIDTH),
        "layer-norm": lambda: nn.LayerNorm(WIDTH),
        "group-norm": lambda: nn.GroupNorm(2, WIDTH),
        "rms-norm": lambda: nn.RMSNorm(WIDTH),
    },
    "image": {
        **_ACTS,
        **_norms(nn.BatchNorm2d),
        "conv": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        "conv-grouped": lambda: nn.Conv2d(WIDTH, WIDTH, 1, groups=2, bias=False),
        "group-norm": lambda: nn.GroupNorm(2, WIDTH),
    },
    "sequence": {
        **_ACTS,
        **_norms(nn.BatchNorm1d, ChannelsFirst),
        "linear": lambda: nn.Linear(WIDTH, WIDTH),
        "conv": lambda: ChannelsFirst(nn.Conv1d(WIDTH, WIDTH, 3, padding=1)),
        "lstm": lambda: First(nn.LSTM(WIDTH, WIDTH, batch_first=True)),
        "gru": lambda: First(nn.GRU(WIDTH, WIDTH, batch_first=True)),
        "attention": Attention,
        "layer-norm": lambda: nn.LayerNorm(WIDTH),
        "rms-norm": lambda: nn.RMSNorm(WIDTH),
    },
}
LEAVES["tokens"] = LEAVES["sequence"]
STEMS: dict[str, Leaf] = {
    "vector": lambda: nn.Linear(WIDTH, WIDTH),
    "image": lambda: nn.Conv2d(2, WIDTH, 3, padding=1),
    "sequence": nn.Identity,
    "tokens": lambda: nn.Embedding(TOKENS, WIDTH),
}
SHAPES = {"vector": (WIDTH,), "image": (2, 3, 3), "sequence": (LENGTH, WIDTH), "tokens": (LENGTH,)}
Block = str | tuple[str, tuple[str, ...]]


class Net(nn.Module):
    """Stem, blocks, mean over what is left of space or time, head."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.Sequential(*blocks), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.stem(x))
        if y.ndim == 4:
            y = y.mean((2, 3))
        return self.head(y.mean(1) if y.ndim == 3 else y)


@dataclass(frozen=True)
class Architecture:
    """One random model."""

    kind: str
    blocks: tuple[Block, ...]
    tied: str
    frozen: tuple[int, ...]
    dtype: torch.dtype

    def build(self, seed: int) -> nn.Module:
        """The model, freshly initialised."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = Net(STEMS[self.kind](), [self._block(block) for block in self.blocks])
        linears = [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == WIDTH]
        if self.tied == "layers" and len(linears) > 1:
            linears[-1].weight = linears[0].weight
        if self.tied == "head" and isinstance(net.stem, nn.Embedding):
            net.head.weight = net.stem.weight
        parameters = list(net.parameters())
        for index in self.frozen:
            parameters[index % (len(parameters) - 1)].requires_grad_(False)
        return net.to(self.dtype)

    def _block(self, block: Block) -> nn.Module:
        leaves = LEAVES[self.kind]
        if isinstance(block, str):
            return leaves[block]()
        way, names = block
        parts = [leaves[name]() for name in names]
        if way == "residual":
            return Together(nn.Identity(), nn.Sequential(*parts))
        if way == "twice":
            return nn.Sequential(parts[0], nn.Tanh(), parts[0])
        return Together(*parts)

    def batch(self, size: int, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets number `index`."""
        generator = torch.Generator().manual_seed(index)
        y = torch.randn(size, CLASSES, generator=generator, dtype=torch.float64)
        if self.kind == "tokens":
            return torch.randint(TOKENS, (size, LENGTH), generator=generator), y
        return torch.randn(size, *SHAPES[self.kind], generator=generator, dtype=torch.float64).to(self.dtype), y


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Models from the grammar."""
    kind = draw(st.sampled_from(list(SHAPES)))
    leaf = st.sampled_from(list(LEAVES[kind]))
    several = st.tuples(
        st.sampled_from(("residual", "branch", "twice")), st.lists(leaf, min_size=1, max_size=2).map(tuple)
    )
    return Architecture(
        kind,
        tuple(draw(st.lists(leaf | several, max_size=3))),
        draw(st.sampled_from(("", "", "layers", "head"))),
        tuple(draw(st.lists(st.integers(0, 7), max_size=2))),
        draw(st.sampled_from((torch.float64, torch.float64, torch.float64, torch.float32, torch.bfloat16))),
    )


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples, in float64 whatever the model computes in."""
    return (outputs.double() - targets).square().mean()
