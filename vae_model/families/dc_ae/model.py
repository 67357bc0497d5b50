"""The deep compression autoencoder of Sana and others: images in, images out, diffusers' keys.

Source: mit-han-lab efficientvit and diffusers `AutoencoderDC` (Apache-2.0), re-implemented. Latents are raw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from ...exact.stream.added import add_fitted
from ..arguments import half_of, require_planes, require_sides
from .config import DCConfig, DCLevels, Stage
from .layers import Down, EfficientViTBlock, ResBlock, RMSNorm, Up, activate


def _blocks(stage: Stage, head_dim: int) -> list[nn.Module]:
    kinds = (lambda: EfficientViTBlock(stage, head_dim)) if stage.attends else (lambda: ResBlock(stage))
    return [kinds() for _ in range(stage.blocks)]


def _layers(levels: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """One after the other: whoever calls several at once holds what went in to the end."""
    for level in levels:
        yield from level.children()


class Encoder(nn.Module):
    """(B, in_channels, H, W) -> latents (B, c, H / f, W / f)."""

    decides = ("shortcut",)

    def __init__(self, config: DCConfig, levels: DCLevels) -> None:
        super().__init__()
        widths, self.factor, self.shortcut = levels.widths, levels.factor, levels.shortcut
        self.in_channels = config.in_channels
        if levels.steps_first:
            self.conv_in: nn.Module = Down(config.in_channels, widths[1], pixels=levels.pixels, shortcut=False)
        else:
            self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for number, stage in enumerate(levels.stages):
            layers = _blocks(stage, config.head_dim)
            if layers and number + 1 < len(widths):
                layers.append(Down(stage.width, widths[number + 1], pixels=levels.pixels, shortcut=True))
            self.down_blocks.append(nn.Sequential(*layers))
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        require_planes(x, self.in_channels, type(self).__name__, self.conv_out)
        require_sides(x, self.factor, type(self).__name__)
        h = self.conv_in(x)
        for layer in _layers(self.down_blocks):
            h = layer(h)
        z = self.conv_out(h)
        if self.shortcut:
            add_fitted(z, h)
        return z


class Decoder(nn.Module):
    """Latents (B, c, h, w) -> (B, out_channels, h * f, w * f). `up_blocks[0]` has full size and runs last."""

    decides = ("shortcut", "activation")

    def __init__(self, config: DCConfig, levels: DCLevels) -> None:
        super().__init__()
        widths, self.shortcut, self.activation = levels.widths, levels.shortcut, config.last_activation
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.up_blocks = nn.ModuleList()
        for number, stage in enumerate(levels.stages):
            layers = _blocks(stage, config.head_dim)
            if layers and number + 1 < len(widths):
                layers.insert(0, Up(widths[number + 1], stage.width, pixels=levels.pixels, shortcut=True))
            self.up_blocks.append(nn.Sequential(*layers))
        width = widths[levels.steps_first]
        self.norm_out = RMSNorm(width)
        if levels.steps_first:
            self.conv_out: nn.Module = Up(width, config.out_channels, pixels=levels.pixels, shortcut=False)
        else:
            self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        require_planes(z, self.conv_in.in_channels, type(self).__name__, self.conv_in)
        h = self.conv_in(z)
        if self.shortcut:
            add_fitted(h, z)
        for layer in _layers(reversed([*self.up_blocks])):
            h = layer(h)
        return self.conv_out(activate(self.norm_out(h), self.activation))


class DCAutoencoder(nn.Module):
    """Encoder and decoder, with nothing between them and the latents."""

    def __init__(self, config: DCConfig) -> None:
        super().__init__()
        self.config = config
        if config.encoder is not None:
            self.encoder = Encoder(config, config.encoder)
        if config.decoder is not None:
            self.decoder = Decoder(config, config.decoder)

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in -1..1, sides in whole cells, to raw latents (B, c, H / f, W / f)."""
        return half_of(self, "encoder")(x)

    def decode(self, z: Tensor) -> Tensor:
        """Raw latents (B, c, h, w) to images (B, C, h * f, w * f), about -1..1, not clamped."""
        return half_of(self, "decoder")(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(latents, reconstruction)."""
        z = self.encode(x)
        return z, self.decode(z)
