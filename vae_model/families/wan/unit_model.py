"""Wan 2.2's network, whose levels are units with shortcuts: of pictures and of whole clips, or of pictures alone.

Source: Wan-Video Wan2.2 `wan/modules/vae2_2.py` and diffusers `AutoencoderKLWan` (Apache-2.0), re-implemented. Latents
are raw; what the diffusion models make of them is in the families.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...exact.stream.squares import Squares, gather, spread
from ..arguments import half_of, require_planes, require_sides
from ..ldm.config import LevelsConfig
from ..ldm.layers import activate_fresh
from .layers import AttentionBlock, CausalConv3d, ResidualBlock, RMS_norm, by_frame
from .unit_config import UnitConfig
from .unit_layers import PATCH, Down_ResidualBlock, Up_ResidualBlock


def _middle(dim: int, taps: int) -> nn.Sequential:
    first, second = (ResidualBlock(dim, dim, frames=taps) for _ in range(2))
    return nn.Sequential(first, AttentionBlock(dim), second)


def _head(dim: int, out_channels: int, taps: int) -> nn.Sequential:
    return nn.Sequential(RMS_norm(dim), nn.SiLU(), CausalConv3d(dim, out_channels, frames=taps))


def _through(x: Tensor, layers: list[nn.Module], head: nn.Sequential) -> Tensor:
    """One by one: whoever calls a whole sequence holds its input to the end."""
    for layer in layers:
        x = layer(x)
    norm, _, conv = head
    return conv(activate_fresh(norm(x)))


class Encoder3d(nn.Module):
    """(B, in_channels, H, W) -> moments (B, out_channels, H // f, W // f); of clips 1 + 4n frames to 1 + n."""

    def __init__(
        self, levels: LevelsConfig, in_channels: int, out_channels: int, over_time: tuple[bool, ...], taps: int
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(in_channels, levels.ch, frames=taps)
        dims, last = (levels.ch, *levels.widths), len(levels.widths) - 1
        steps, blocks = (*over_time, False), levels.num_res_blocks
        units = (
            Down_ResidualBlock(dims[n], dims[n + 1], blocks, down=n < last, over_time=steps[n], taps=taps)
            for n in range(last + 1)
        )
        self.downsamples = nn.Sequential(*units)
        self.middle = _middle(dims[-1], taps)
        self.head = _head(dims[-1], out_channels, taps)

    def forward(self, x: Tensor) -> Tensor:
        frame = x[:, :, 0] if x.ndim == 5 and self.conv1.kernel_size[0] > 1 else x
        require_planes(frame, self.conv1.in_channels, type(self).__name__, self.conv1)
        require_sides(frame, 2 ** (len(self.downsamples) - 1), type(self).__name__)
        return _through(self.conv1(x), [*self.downsamples, *self.middle], self.head)


class Decoder3d(nn.Module):
    """(B, in_channels, h, w) -> (B, out_channels, h * f, w * f); of clips 1 + n frames to 1 + 4n."""

    def __init__(
        self, levels: LevelsConfig, in_channels: int, out_channels: int, over_time: tuple[bool, ...], taps: int
    ) -> None:
        super().__init__()
        dims, last = (levels.widths[-1], *levels.widths[::-1]), len(levels.widths) - 1
        steps, blocks = (*over_time[::-1], False), levels.num_res_blocks + 1
        self.conv1 = CausalConv3d(in_channels, dims[0], frames=taps)
        self.middle = _middle(dims[0], taps)
        units = (
            Up_ResidualBlock(dims[n], dims[n + 1], blocks, up=n < last, over_time=steps[n], taps=taps)
            for n in range(last + 1)
        )
        self.upsamples = nn.Sequential(*units)
        self.head = _head(dims[-1], out_channels, taps)

    def forward(self, z: Tensor) -> Tensor:
        frame = z[:, :, 0] if z.ndim == 5 and self.conv1.kernel_size[0] > 1 else z
        require_planes(frame, self.conv1.in_channels, type(self).__name__, self.conv1)
        return _through(self.conv1(z), [*self.middle, *self.upsamples], self.head)


class UnitVAE(nn.Module):
    """Encoder and decoder with a 1x1 convolution each, between them and the latents: `conv1` and `conv2`."""

    def __init__(self, config: UnitConfig) -> None:
        super().__init__()
        self.config = config
        z, over_time, taps, pixels = config.latent_channels, config.over_time, config.taps, config.patch**2
        if config.encoder is not None:
            self.encoder = Encoder3d(config.encoder, pixels * config.in_channels, 2 * z, over_time, taps)
            self.conv1 = CausalConv3d(2 * z, 2 * z, 1)
        if config.decoder is not None:
            self.conv2 = CausalConv3d(z, z, 1)
            self.decoder = Decoder3d(config.decoder, z, pixels * config.out_channels, over_time, taps)

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in -1..1 to the mean of the posterior, raw latents (B, z, H // f, W // f).

        Clips (B, C, 1 + 4n, H, W) to (B, z, 1 + n, H // f, W // f); frames beyond these are left out.
        """
        encoder, every = half_of(self, "encoder"), self.config.time_factor
        if x.ndim == 5 and self.config.taps > 1:
            x = x[:, :, : 1 + (x.shape[2] - 1) // every * every]
        if self.config.patch > 1:
            x = by_frame(self._cells, x)
        return self.conv1(encoder(x)).chunk(2, dim=1)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Raw latents (B, z, h, w) to images (B, C, h * f, w * f), about -1..1, not clamped.

        Those of clips (B, z, 1 + n, h, w) to (B, C, 1 + 4n, h * f, w * f).
        """
        decoder, frames = half_of(self, "decoder"), z.ndim == 5 and self.config.taps > 1
        require_planes(z[:, :, 0] if frames else z, self.conv2.in_channels, "Decoder3d", self.conv2)
        x = decoder(self.conv2(z))
        return by_frame(self._pixels, x) if self.config.patch > 1 else x

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(latents, reconstruction)."""
        z = self.encode(x)
        return z, self.decode(z)

    def _cells(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4C, H // 2, W // 2)."""
        require_planes(x, self.config.in_channels, "Encoder3d", self.encoder.conv1)
        height, width = x.shape[2] // 2, x.shape[3] // 2
        out = x.new_empty(x.shape[0], 4 * x.shape[1], height, width)
        gather(out, x[:, :, : 2 * height, : 2 * width], Squares(self.config.in_channels, PATCH, 4), 1)
        return out

    def _pixels(self, x: Tensor) -> Tensor:
        return spread(x, Squares(self.config.out_channels, PATCH, 4))
