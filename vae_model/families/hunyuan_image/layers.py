"""The two layers between levels of the HunyuanImage 2.1 autoencoder. Attribute names equal the original's keys.

A square of 2x2 pixels lies in the channels of a cell, its four pixels one behind the other with all their channels.
Beside the convolution stands a shortcut without weights. Source: Tencent-Hunyuan HunyuanImage-2.1 and diffusers
`AutoencoderKLHunyuanImage` (Apache-2.0), re-implemented.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...exact.stream.added import add_fitted


class ConvolveAndSpread(nn.Module):
    """(B, in, h, w) -> (B, out, 2h, 2w): every channel of the input, repeated, is added to the convolution's."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        add_fitted(h, x)
        squares = h.unflatten(1, (2, 2, -1))  # (B, 2, 2, out, h, w)
        return squares.permute(0, 3, 4, 1, 5, 2).flatten(2, 3).flatten(3)


class ConvolveAndGather(nn.Module):
    """(B, in, 2h, 2w) -> (B, out, h, w): means of the input's channels are added to the convolution's."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels // 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        add_fitted(h, x)
        squares = h.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, out / 4, h, 2, w, 2)
        return squares.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
