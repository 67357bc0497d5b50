"""The Qwen-Image 2.1 autoencoder: images of four channels in, such images out, with the names of Wan 2.2.

Source: Wan-Video Wan2.2 `wan/modules/vae2_2.py` and diffusers `AutoencoderKLQwenImage21` (Apache-2.0), re-implemented.
Latents are raw; what the diffusion model makes of them is in `family`.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..arguments import half_of, require_planes, require_sides
from ..ldm.config import LevelsConfig
from ..ldm.layers import activate_fresh
from ..wan.layers import AttentionBlock, CausalConv3d, ResidualBlock, RMS_norm
from .config import QwenImage21Config
from .layers import Down_ResidualBlock, Up_ResidualBlock


def _middle(dim: int) -> nn.Sequential:
    first, second = (ResidualBlock(dim, dim, frames=1) for _ in range(2))
    return nn.Sequential(first, AttentionBlock(dim), second)


def _head(dim: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(RMS_norm(dim), nn.SiLU(), CausalConv3d(dim, out_channels, frames=1))


def _through(x: Tensor, layers: list[nn.Module], head: nn.Sequential) -> Tensor:
    """One by one: whoever calls a whole sequence holds its input to the end."""
    for layer in layers:
        x = layer(x)
    norm, _, conv = head
    return conv(activate_fresh(norm(x)))


class Encoder3d(nn.Module):
    """(B, in_channels, H, W) -> moments (B, out_channels, H // f, W // f)."""

    def __init__(self, levels: LevelsConfig, in_channels: int, out_channels: int, over_time: tuple[bool, ...]) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(in_channels, levels.ch, frames=1)
        dims, last = (levels.ch, *levels.widths), len(levels.widths) - 1
        steps, blocks = (*over_time, False), levels.num_res_blocks
        units = (
            Down_ResidualBlock(dims[n], dims[n + 1], blocks, down=n < last, over_time=steps[n]) for n in range(last + 1)
        )
        self.downsamples = nn.Sequential(*units)
        self.middle = _middle(dims[-1])
        self.head = _head(dims[-1], out_channels)

    def forward(self, x: Tensor) -> Tensor:
        require_planes(x, self.conv1.in_channels, type(self).__name__, self.conv1)
        require_sides(x, 2 ** (len(self.downsamples) - 1), type(self).__name__)
        return _through(self.conv1(x), [*self.downsamples, *self.middle], self.head)


class Decoder3d(nn.Module):
    """(B, in_channels, h, w) -> (B, out_channels, h * f, w * f)."""

    def __init__(self, levels: LevelsConfig, in_channels: int, out_channels: int, over_time: tuple[bool, ...]) -> None:
        super().__init__()
        dims, last = (levels.widths[-1], *levels.widths[::-1]), len(levels.widths) - 1
        steps, blocks = (*over_time[::-1], False), levels.num_res_blocks + 1
        self.conv1 = CausalConv3d(in_channels, dims[0], frames=1)
        self.middle = _middle(dims[0])
        units = (
            Up_ResidualBlock(dims[n], dims[n + 1], blocks, up=n < last, over_time=steps[n]) for n in range(last + 1)
        )
        self.upsamples = nn.Sequential(*units)
        self.head = _head(dims[-1], out_channels)

    def forward(self, z: Tensor) -> Tensor:
        require_planes(z, self.conv1.in_channels, type(self).__name__, self.conv1)
        return _through(self.conv1(z), [*self.middle, *self.upsamples], self.head)


class QwenImage21VAE(nn.Module):
    """Encoder and decoder with a 1x1 convolution each, between them and the latents: `conv1` and `conv2`."""

    def __init__(self, config: QwenImage21Config) -> None:
        super().__init__()
        z, over_time = config.latent_channels, config.over_time
        if config.encoder is not None:
            self.encoder = Encoder3d(config.encoder, config.in_channels, 2 * z, over_time)
            self.conv1 = CausalConv3d(2 * z, 2 * z, 1)
        if config.decoder is not None:
            self.conv2 = CausalConv3d(z, z, 1)
            self.decoder = Decoder3d(config.decoder, z, config.out_channels, over_time)

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in -1..1 to the mean of the posterior, raw latents (B, z, H // f, W // f)."""
        encoder = half_of(self, "encoder")
        return self.conv1(encoder(x)).chunk(2, dim=1)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Raw latents (B, z, h, w) to images (B, C, h * f, w * f), about -1..1, not clamped."""
        decoder = half_of(self, "decoder")
        require_planes(z, self.conv2.in_channels, "Decoder3d", self.conv2)
        return decoder(self.conv2(z))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(latents, reconstruction)."""
        z = self.encode(x)
        return z, self.decode(z)
