"""Small models of the kinds that late-phase weights meet, and their inputs."""

from collections import OrderedDict
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 3


def bn_cnn() -> nn.Module:
    """Three kinds of BatchNorm: the usual one, one without affine weights, one with a cumulative average."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(2, 4, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(4),
            act1=nn.ReLU(),
            conv2=nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=False),
            bn2=nn.BatchNorm2d(4, affine=False),
            act2=nn.ReLU(),
            conv3=nn.Conv2d(4, 5, 3, padding=1, bias=False),
            bn3=nn.BatchNorm2d(5, momentum=None),
            act3=nn.Tanh(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(5, CLASSES),
        )
    )


class WideBlock(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inner, outer, 1, stride=stride, bias=False) if inner != outer else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(h)
        return self.conv2(F.relu(self.bn2(self.conv1(h)))) + skip


class WideResNet(nn.Module):
    """WRN-10-1: one pre-activation block in each of three groups."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(WideBlock(16, 16, 1), WideBlock(16, 32, 2), WideBlock(32, 64, 2))
        self.bn = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, CLASSES)

    def forward_features(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.blocks(self.conv(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.forward_features(x))


def ln_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 8),
        nn.LayerNorm(8),
        nn.GELU(),
        nn.Linear(8, 8),
        nn.LayerNorm(8),
        nn.GELU(),
        nn.Linear(8, CLASSES),
    )


class Transformer(nn.Module):
    """PyTorch's own pre-norm encoder block with a classifier on the mean token."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(
            8, nhead=2, dim_feedforward=12, dropout=0.0, norm_first=True, batch_first=True
        )
        self.norm = nn.LayerNorm(8)
        self.classifier = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.norm(self.block(x)).mean(1))


def gn_cnn() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(2, 4, 3, padding=1),
            norm1=nn.GroupNorm(2, 4),
            act1=nn.ReLU(),
            conv2=nn.Conv2d(4, 4, 3, padding=1, groups=2),
            norm2=nn.GroupNorm(1, 4),
            act2=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(4, CLASSES),
        )
    )


class Tied(nn.Module):
    """A language model in small: the decoder's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.mix = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.decoder = nn.Linear(6, 9, bias=False)
        self.decoder.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.norm(torch.tanh(self.mix(self.embed(tokens))))).mean(1)


class Reader(nn.Module):
    """A recurrent net over tokens."""

    def __init__(self, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.recurrent = recurrent
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.recurrent(self.embed(tokens))[0][:, -1]))


class DecoderBlock(nn.Module):
    """Causal attention and a gated unit behind RMSNorm, as in today's language models."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, 6, bias=False), nn.Linear(width, 6, bias=False)
        self.down = nn.Linear(6, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (p(h).unflatten(-1, (2, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        x = x + self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    """A decoder-only language model in small, its output layer tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.block = DecoderBlock(4)
        self.norm = nn.RMSNorm(4)
        self.lm_head = nn.Linear(4, 9, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.norm(self.block(self.embed(tokens)))).mean(1)


class RootMeanSquare(nn.Module):
    """The norm of Hugging Face's language models: a scale, sometimes as its distance from one, sometimes a shift."""

    def __init__(self, width: int, centred: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width) if centred else torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.centred = centred

    def forward(self, x: Tensor) -> Tensor:
        normal = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        scaled = normal * (1 + self.weight if self.centred else self.weight)
        return scaled if self.bias is None else scaled + self.bias


class LlamaRMSNorm(RootMeanSquare):
    """Known to the library by its class's name alone, as are the others."""


class T5LayerNorm(RootMeanSquare):
    pass


class GemmaRMSNorm(RootMeanSquare):
    def __init__(self, width: int) -> None:
        super().__init__(width, centred=True)


MODELS = {
    "bn_cnn": bn_cnn,
    "wrn_10_1": WideResNet,
    "ln_mlp": ln_mlp,
    "transformer": Transformer,
    "gn_cnn": gn_cnn,
    "tied": Tied,
    "decoder": Decoder,
    "lstm": lambda: Reader(nn.LSTM(4, 5, batch_first=True)),
    "gru": lambda: Reader(nn.GRU(4, 5, num_layers=2, batch_first=True)),
}
RECURRENT = ("lstm", "gru")  # what torch.vmap cannot run
TOKENS = ("tied", "decoder", *RECURRENT)  # models that read tokens
# What the family Parameters takes: convolutions under shared BatchNorms, a whole block with its BatchNorms,
# biases that no backward saves, a packed projection, a tied tensor by its first name.
PATTERNS = {
    "bn_cnn": ["conv[23].weight", "fc.bias"],
    "wrn_10_1": ["blocks.2.*"],
    "ln_mlp": ["*.bias"],
    "transformer": ["block.self_attn.in_proj_*", "block.norm?.bias"],
    "gn_cnn": ["conv1.*", "norm2.weight"],
    "tied": ["embed.*", "norm.bias"],
    "decoder": ["embed.*", "block.?_proj.*"],
    "lstm": ["embed.*", "recurrent.weight_hh*", "recurrent.bias*"],
    "gru": ["recurrent.*_l1"],
}
UNTIED_HEAD = {"tied": "mix", "decoder": "block.down"}  # "head" itself would be the tied decoder, and is refused
RANK_ONE = {"tied": ["*"], "decoder": ["*_proj", "lm_head"]}  # names of modules; everywhere else all but embeddings
# What the family Hypernetwork takes: layers of different width that share templates, grouped convolutions, layers
# of a packed block, a single layer.
HYPERNETWORK = {
    "bn_cnn": ["conv[12]", "conv3"],
    "wrn_10_1": ["blocks.*.conv?"],
    "ln_mlp": ["0", "3"],
    "transformer": ["block.linear?", "block.self_attn.out_proj"],
    "gn_cnn": ["conv?"],
    "tied": ["mix"],
    "decoder": ["block.?_proj", "lm_head"],
    "lstm": ["head"],
    "gru": ["head"],
}

_SHAPES = {
    "bn_cnn": (2, 6, 6),
    "wrn_10_1": (3, 8, 8),
    "ln_mlp": (5,),
    "transformer": (3, 8),
    "gn_cnn": (2, 6, 6),
}


def inputs(model: str, size: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """A minibatch of inputs and class labels."""
    generator = torch.Generator().manual_seed(1000 + seed)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    if model in TOKENS:
        return torch.randint(9, (size, 4), generator=generator), labels
    return torch.randn(size, *_SHAPES[model], generator=generator, dtype=torch.float64).to(dtype), labels


class RankOneByHand(nn.Module):
    """The rank-one family's parametrization, for the reference: W_ij r_i s_j, multiplied from left to right.

    The order matters to a test at 1e-12: where the true gradient is zero (a row of a convolution before a
    BatchNorm) Adam turns the last bit of a product into a step.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.ones(weight.shape[0], dtype=weight.dtype))
        self.column = nn.Parameter(torch.ones(weight.shape[1], dtype=weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        rows = self.row.reshape(-1, *[1] * (weight.ndim - 1))
        columns = self.column.reshape(1, -1, *[1] * (weight.ndim - 2))
        return weight * rows * columns


WEIGHTED = (nn.Linear, nn.Conv2d, nn.RNNBase, nn.MultiheadAttention, nn.Embedding)


def matrices(model: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """Dotted names of the weight matrices of all modules whose name matches; None: all but embeddings' tables."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, WEIGHTED) and (patterns is None or any(fnmatchcase(name, p) for p in patterns)):
            found |= {
                p: f"{name}.{own}"
                for own, p in module.named_parameters(recurse=False)
                if p.ndim > 1 and not (patterns is None and isinstance(module, nn.Embedding))
            }
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)} if patterns is None else set()
    return [name for name, p in model.named_parameters() if p in found and p not in tables]


def parametrize(model: nn.Module, name: str, made: nn.Module) -> None:
    """Puts a parametrization on a weight in all the places that it has."""
    weight = model.get_parameter(name)
    for module in list(model.modules()):
        for own in [own for own, p in module._parameters.items() if p is weight]:
            nn.utils.parametrize.register_parametrization(module, own, made, unsafe=True)
            if isinstance(module, nn.RNNBase) and not module._forward_pre_hooks:
                module.register_forward_pre_hook(_refresh)
                module.register_forward_hook(_forget)


def _refresh(module: nn.RNNBase, _) -> None:
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


def _forget(module: nn.RNNBase, *_) -> None:
    module._flat_weights, module._flat_weight_refs = [], [None] * len(module._flat_weights_names)


def factor(model: nn.Module, names: Sequence[str]) -> None:
    """Puts rank-one factors on weights."""
    for name in names:
        parametrize(model, name, RankOneByHand(model.get_parameter(name)))


class LowRankByHand(nn.Module):
    """The LoRA family's parametrization, for the reference: W + s B A.

    As one call, for the reason that `RankOneByHand` gives; other tests spell the sum out.
    """

    def __init__(self, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(up.clone()), nn.Parameter(down.clone())
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return torch.addmm(weight.flatten(1), self.up, self.down, alpha=self.scale).reshape(weight.shape)


def adapt(model: nn.Module, names: Sequence[str], like: nn.Module, scale: float, frozen: bool) -> None:
    """Puts low-rank factors on weights, with the values that they have in another model."""
    for parameter in model.parameters():
        parameter.requires_grad_(not frozen)
    for name in names:
        owner, _, own = name.rpartition(".")
        theirs = like.get_submodule(owner).parametrizations[own][0]
        parametrize(model, name, LowRankByHand(theirs.down.detach(), theirs.up.detach(), scale))


class BankByHand(nn.Module):
    def __init__(self, templates: Tensor) -> None:
        super().__init__()
        self.templates = nn.Parameter(templates.clone())


class CombinationByHand(nn.Module):
    """The hypernetwork family's parametrization, for the reference: R + sum_j phi_bj T_j, one block after the other.

    As a matrix product, for the reason that `RankOneByHand` gives; other tests spell the sum out.
    """

    def __init__(self, embedding: Tensor, bank: BankByHand) -> None:
        super().__init__()
        self.embedding = nn.Parameter(embedding.clone())
        self.bank = bank
        self.register_buffer("initial", embedding.clone())

    def forward(self, residual: Tensor) -> Tensor:
        templates = self.bank.templates
        made = (self.embedding @ templates.reshape(len(templates), -1)).reshape(-1, *templates.shape[1:])
        return residual + torch.cat(list(made), dim=1)


def combine(model: nn.Module, like: nn.Module) -> None:
    """Puts hypernetwork factors on the layers that have them in another model, with that model's values."""
    banks: dict[nn.Parameter, BankByHand] = {}
    for name, module in like.named_modules():
        mine = model.get_submodule(name) if nn.utils.parametrize.is_parametrized(module, "weight") else None
        if mine is not None and not nn.utils.parametrize.is_parametrized(mine):  # as it would be if tied
            theirs = module.parametrizations.weight
            templates = theirs[0].bank.templates
            bank = banks.setdefault(templates, BankByHand(templates.detach()))
            made = CombinationByHand(theirs[0].embedding.detach(), bank)
            parametrize(model, f"{name}.weight", made)
            with torch.no_grad():
                mine.parametrizations.weight.original.copy_(theirs.original)
            mine.parametrizations.weight.original.requires_grad_(theirs.original.requires_grad)
