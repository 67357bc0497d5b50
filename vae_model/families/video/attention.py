"""The transformer over the frames of each position, and the embedding of frame numbers that it is told.

Source: Stability-AI generative-models `sgm/modules/video_attention.py` and `attention.py` (MIT), re-implemented.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...attention.backends import pytorch_attention


def frame_embedding(frames: int, dim: int) -> Tensor:
    """Of the numbers 0..frames - 1, (frames, dim) in float32: cosines, then sines, then a zero where `dim` is odd.

    Frequencies are 10000 ** (-i / (dim // 2)): not those of the diffusion model's timestep embedding.
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half) * (-math.log(10000.0) / max(1, half)))
    angles = torch.arange(frames)[:, None] * frequencies  # (frames, half)
    return functional.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))  # (frames, dim)


class GatedLinear(nn.Module):
    """Half of the projection times GELU of the other half: (..., dim) -> (..., inner)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * functional.gelu(gate)


class FeedForward(nn.Module):
    """Gated, four times as wide inside: (..., dim) -> (..., dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedLinear(dim, 4 * dim), nn.Dropout(0.0), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SelfAttention(nn.Module):
    """One head over the tokens: (B, N, dim) -> (B, N, dim); q, k and v have no bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(pytorch_attention(self.to_q(x), self.to_k(x), self.to_v(x)))


class TimeTransformer(nn.Module):
    """Feed-forward, two self-attentions, feed-forward, each x + layer(LayerNorm(x)): (B, T, dim) -> (B, T, dim).

    The second attention stands where others attend to a context; without one it attends to the frames again.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_in, self.ff_in = nn.LayerNorm(dim), FeedForward(dim)
        self.norm1, self.attn1 = nn.LayerNorm(dim), SelfAttention(dim)
        self.norm2, self.attn2 = nn.LayerNorm(dim), SelfAttention(dim)
        self.norm3, self.ff = nn.LayerNorm(dim), FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ff_in(self.norm_in(x))
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x))
        return x + self.ff(self.norm3(x))
