"""The Wan 2.1 and Qwen-Image autoencoder, pictures and clips, the original's keys.

Source: Wan-Video Wan2.1 `wan/modules/vae.py` (Apache-2.0), re-implemented. Latents are raw; what the diffusion models
make of them is in `family`.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..arguments import half_of, require_planes
from ..ldm.config import LevelsConfig
from ..ldm.layers import activate_fresh
from .config import WanConfig
from .layers import AttentionBlock, CausalConv3d, Resample, ResidualBlock, RMS_norm, by_frame


def _middle(dim: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim))


def _head(dim: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(RMS_norm(dim), nn.SiLU(), CausalConv3d(dim, out_channels))


def _through(x: Tensor, first: nn.Module, layers: list[nn.Module], head: nn.Sequential) -> Tensor:
    """One by one: whoever calls a whole sequence holds its input to the end."""
    x = first(x)
    for layer in layers:
        x = layer(x)
    norm, _, conv = head
    return conv(activate_fresh(norm(x)))


class Encoder3d(nn.Module):
    """(B, in_channels, H, W) -> moments (B, out_channels, H // f, W // f); the same with an axis of frames behind the
    channels, 1 + 4n of them to 1 + n.
    """

    def __init__(self, levels: LevelsConfig, in_channels: int, out_channels: int, over_time: tuple[bool, ...]) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(in_channels, levels.ch)
        layers: list[nn.Module] = []
        dim = levels.ch
        for level, width in enumerate(levels.widths):
            for _ in range(levels.num_res_blocks):
                layers.append(ResidualBlock(dim, width))
                dim = width
            if level + 1 < len(levels.widths):
                layers.append(Resample(width, up=False, over_time=over_time[level]))
        self.downsamples = nn.Sequential(*layers)
        self.middle = _middle(dim)
        self.head = _head(dim, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return _through(x, self.conv1, [*self.downsamples, *self.middle], self.head)


class Decoder3d(nn.Module):
    """(B, in_channels, h, w) -> (B, out_channels, h * f, w * f); the same with an axis of frames behind the channels,
    1 + n of them to 1 + 4n.
    """

    def __init__(self, levels: LevelsConfig, in_channels: int, out_channels: int, over_time: tuple[bool, ...]) -> None:
        super().__init__()
        dim = levels.widths[-1]
        self.conv1 = CausalConv3d(in_channels, dim)
        self.middle = _middle(dim)
        layers: list[nn.Module] = []
        for level, width in reversed(list(enumerate(levels.widths))):
            for _ in range(levels.num_res_blocks + 1):
                layers.append(ResidualBlock(dim, width))
                dim = width
            if level > 0:
                layers.append(Resample(width, up=True, over_time=over_time[level - 1]))
                dim = width // 2
        self.upsamples = nn.Sequential(*layers)
        self.head = _head(dim, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return _through(x, self.conv1, [*self.middle, *self.upsamples], self.head)


class WanVAE(nn.Module):
    """Encoder and decoder with a 1x1 convolution each, between them and the latents: `conv1` and `conv2`.

    A decoder of four times as many channels as an image has them is the one that makes both sides twice as large: what
    it makes goes through a pixel shuffle.
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        z, over_time = config.latent_channels, config.over_time
        if config.encoder is not None:
            self.encoder = Encoder3d(config.encoder, config.in_channels, 2 * z, over_time)
            self.conv1 = CausalConv3d(2 * z, 2 * z, 1)
        if config.decoder is not None:
            self.conv2 = CausalConv3d(z, z, 1)
            self.decoder = Decoder3d(config.decoder, z, config.out_channels, over_time)
            if config.enlargement > 1:
                self.shuffle = nn.PixelShuffle(config.enlargement)

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in -1..1 to the mean of the posterior, raw latents (B, z, H // f, W // f).

        Clips (B, C, 1 + 4n, H, W) to (B, z, 1 + n, H // f, W // f).
        """
        encoder = half_of(self, "encoder")
        require_planes(x[:, :, 0] if x.ndim == 5 else x, self.config.in_channels, "Encoder3d", encoder.conv1)
        return self.conv1(encoder(x)).chunk(2, dim=1)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Raw latents (B, z, h, w) to images (B, C, h * f, w * f), about -1..1, not clamped.

        Those of clips (B, z, 1 + n, h, w) to (B, C, 1 + 4n, h * f, w * f).
        """
        decoder = half_of(self, "decoder")
        require_planes(z[:, :, 0] if z.ndim == 5 else z, self.config.latent_channels, "Decoder3d", self.conv2)
        x = decoder(self.conv2(z))
        return by_frame(self.shuffle, x) if hasattr(self, "shuffle") else x

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(latents, reconstruction)."""
        z = self.encode(x)
        return z, self.decode(z)
