"""The HunyuanImage 2.1 autoencoder: images in, images out, the original's keys.

Source: Tencent-Hunyuan HunyuanImage-2.1 and diffusers `AutoencoderKLHunyuanImage` (Apache-2.0), re-implemented with the
layers that it shares with latent-diffusion's. Latents are raw.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ...exact.stream.added import add_fitted
from ..arguments import half_of, require_planes, require_sides
from ..ldm.coder import Level, Middle
from ..ldm.config import LevelsConfig
from ..ldm.layers import AttnBlock, Normalize, ResnetBlock, activate_fresh
from .config import NUM_GROUPS, HunyuanImageConfig
from .layers import ConvolveAndGather, ConvolveAndSpread


def _blocks(width: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(ResnetBlock(in_channels=width, temb_channels=0, num_groups=NUM_GROUPS) for _ in range(count))


def _middle(width: int) -> Middle:
    first, second = _blocks(width, 2)
    return Middle(first, AttnBlock(width, num_groups=NUM_GROUPS), second)


def _through(x: Tensor, parts: Iterable[nn.Module]) -> Tensor:
    """One layer after the other: whoever calls several at once holds what went in to the end."""
    for part in parts:
        assert isinstance(part, (Level, Middle))
        for layer in part.layers():
            x = layer(x)
    return x


class Encoder(nn.Module):
    """(B, in_channels, H, W) -> moments (B, out_channels, H // f, W // f)."""

    def __init__(self, levels: LevelsConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths = levels.widths
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for number, width in enumerate(widths):
            level = Level()
            level.block = _blocks(width, levels.num_res_blocks)
            if number + 1 < len(widths):
                level.downsample = ConvolveAndGather(width, widths[number + 1])
            self.down.append(level)
        self.mid = _middle(widths[-1])
        self.norm_out = Normalize(widths[-1], NUM_GROUPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        require_planes(x, self.conv_in.in_channels, type(self).__name__, self.conv_in)
        require_sides(x, 2 ** (len(self.down) - 1), type(self).__name__)
        h = _through(self.conv_in(x), [*self.down, self.mid])
        moments = self.conv_out(activate_fresh(self.norm_out(h)))
        add_fitted(moments, h)
        return moments


class Decoder(nn.Module):
    """(B, in_channels, h, w) -> (B, out_channels, h * f, w * f). `up[0]` is the smallest level, unlike ldm's."""

    def __init__(self, levels: LevelsConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths = levels.widths[::-1]
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        self.up = nn.ModuleList()
        for number, width in enumerate(widths):
            level = Level()
            level.block = _blocks(width, levels.num_res_blocks + 1)
            if number + 1 < len(widths):
                level.upsample = ConvolveAndSpread(width, widths[number + 1])
            self.up.append(level)
        self.norm_out = Normalize(widths[-1], NUM_GROUPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        require_planes(z, self.conv_in.in_channels, type(self).__name__, self.conv_in)
        require_sides(z, 1, type(self).__name__)
        h = self.conv_in(z)
        add_fitted(h, z)
        h = _through(h, [self.mid, *self.up])
        return self.conv_out(activate_fresh(self.norm_out(h)))


class HunyuanImageVAE(nn.Module):
    """Encoder and decoder, with nothing between them and the latents."""

    def __init__(self, config: HunyuanImageConfig) -> None:
        super().__init__()
        z = config.latent_channels
        if config.encoder is not None:
            self.encoder = Encoder(config.encoder, config.in_channels, 2 * z)
        if config.decoder is not None:
            self.decoder = Decoder(config.decoder, z, config.out_channels)

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in -1..1, sides in whole cells, to the mean of the posterior (B, z, H / f, W / f)."""
        return half_of(self, "encoder")(x).chunk(2, dim=1)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Raw latents (B, z, h, w) to images (B, C, h * f, w * f), about -1..1, not clamped."""
        return half_of(self, "decoder")(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(latents, reconstruction)."""
        z = self.encode(x)
        return z, self.decode(z)
