"""A small decoder-only transformer for characters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BASE = 10_000.0
_EPS = 1e-6
_STD = 0.02


class CharTransformer(nn.Module):
    """Pre-norm blocks of causal attention and a gated feed-forward layer, without biases.

    RMSNorm (Zhang and Sennrich, 2019), rotary positions (Su et al., 2021) and SwiGLU (Shazeer, 2020) with 8/3 of the
    width, rounded up to a multiple of 8. Heads have 32 dimensions, from a width of 256 on 64. Weights begin as in
    GPT-2: normal with deviation 0.02, for what is added to the residual stream divided by sqrt(2 depth).

    `transformer-3-96` is the size for a CPU, 0.37M parameters, `transformer-6-384` that for an accelerator, 10.8M.
    Nothing in the model depends on a length; predictions beyond the trained length are those of rotary positions that
    were never seen, and are better made in windows. A dropout layer of rate 0, which does nothing until it is set,
    stands at the end of attention and feed-forward layer.

    Args:
        vocabulary: Number of characters.
        depth: Blocks.
        width: Size of the residual stream, a multiple of 32 (from 256 on: of 64).
        tied: Use the embedding as the head, too.

    Attributes:
        recurrent: False: nothing is carried from one call to the next.

    Example:
        >>> sum(p.numel() for p in CharTransformer(vocabulary=205, depth=6, width=384).parameters())
        10779264
    """

    recurrent = False

    def __init__(self, vocabulary: int, depth: int, width: int, *, tied: bool = False) -> None:
        super().__init__()
        per_head = 32 if width < 256 else 64
        if depth < 1:
            raise ValueError(f"a transformer has at least 1 block, not {depth}")
        if width < per_head or width % per_head:
            raise ValueError(f"the width is a multiple of {per_head}, the dimensions of a head; not {width}")
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(_Block(width, width // per_head) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=_EPS)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                added = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=_STD / math.sqrt(2 * depth) if added else _STD)
        if tied:
            self.head.weight = self.embedding.weight
        exponents = torch.arange(0, per_head, 2, dtype=torch.float32) / per_head
        self.register_buffer("frequencies", _BASE**-exponents, persistent=False)
        self.frequencies: Tensor

    def forward(self, tokens: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Predict the character after each one from all before it.

        Args:
            tokens: int64, (N, length).
            state: None; it is here because recurrent models have one.

        Returns:
            Logits, (N, length, vocabulary), and None.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.float32)
        angles = positions[:, None] * self.frequencies
        x = self.embedding(tokens)
        rotation = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.blocks:
            x = block(x, rotation)
        return self.head(self.norm(x)), None


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=_EPS)
        self.attention = _Attention(width, heads)
        self.feed_forward_norm = nn.RMSNorm(width, eps=_EPS)
        self.feed_forward = _FeedForward(width)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation)
        return x + self.feed_forward(self.feed_forward_norm(x))


class _Attention(nn.Module):
    """Separate projections, under the names that adapters are commonly aimed at."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(_rotate(q, *rotation), _rotate(k, *rotation), v, is_causal=True)
        return self.dropout(self.o_proj(y.transpose(1, 2).flatten(-2)))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        inner = -(-width // 3) * 8
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + d/2}) of a head by its position's angle; (N, heads, length, d)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
