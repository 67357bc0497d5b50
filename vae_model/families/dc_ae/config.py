"""The configuration of a deep compression autoencoder, DC-AE."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ..halves import HalvesConfig

NORMS = ("rms_norm", "batch_norm")
ACTIVATIONS = ("relu", "silu", "gelu", "mish")


@dataclass(frozen=True)
class Stage:
    """One resolution level of a half."""

    width: int
    blocks: int
    attends: bool = False
    """Whether its blocks are linear attention and a gated convolution, not two convolutions."""
    scales: tuple[int, ...] = ()
    """Kernels of the depthwise convolutions of queries, keys and values that stand beside these themselves."""
    norm: str = "rms_norm"
    """Of blocks of convolutions, and behind attention."""
    activation: str = "silu"
    """In blocks of convolutions."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.blocks < 0 or self.norm not in NORMS or self.activation not in ACTIVATIONS:
            raise ValueError(
                f"level: expected a positive width, norms of {' or '.join(NORMS)} and activations of "
                f"{', '.join(ACTIVATIONS)}, got {self}: correct it"
            )
        if any(kernel < 1 or kernel % 2 == 0 for kernel in self.scales):
            raise ValueError(f"level: expected odd kernels, got {self.scales}: correct them")


@dataclass(frozen=True)
class DCLevels:
    """Of one half. Level 0 has full size; without blocks, the first layer halves the image or the last one doubles."""

    stages: tuple[Stage, ...]
    pixels: bool = True
    """Whether steps between levels move pixels into channels and back; else they leave pixels out or repeat them."""
    shortcut: bool = True
    """Whether channels stand beside the convolution next to the latents, repeated or averaged."""

    def __post_init__(self) -> None:
        if not self.stages or any(stage.blocks == 0 for stage in self.stages[1:-1]):
            raise ValueError(f"levels: expected blocks in all but the first and last one, got {self}: correct them")
        for outer, inner in pairwise(self.stages if self.stages[0].blocks else self.stages[1:]):
            if 4 * outer.width % inner.width or (self.pixels and inner.width % 4):
                raise ValueError(f"levels: expected a width that divides {4 * outer.width}, got {inner.width}")

    @property
    def steps_first(self) -> bool:
        """Whether nothing runs at full size: the step to the next level is the half's first or last layer."""
        return len(self.stages) > 1 and not self.stages[0].blocks

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(stage.width for stage in self.stages)

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return 2 ** (len(self.stages) - 1)


@dataclass(frozen=True)
class DCConfig(HalvesConfig[DCLevels]):
    """The halves may differ in all but their levels' number and the size of attention's heads."""

    latent_channels: int
    encoder: DCLevels | None
    decoder: DCLevels | None
    in_channels: int = 3
    out_channels: int = 3
    head_dim: int = 32
    """Channels of a query, key or value."""
    last_activation: str = "relu"
    """Behind the decoder's last norm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        halves = [*self.halves.values()]
        if len({half.factor for half in halves}) > 1:
            raise ValueError("autoencoder: expected halves of as many levels, got others: these do not belong together")
        if min(self.latent_channels, self.in_channels, self.out_channels, self.head_dim) < 1:
            raise ValueError(f"autoencoder: expected positive channel counts, got {self}: correct them")
        if self.last_activation not in ACTIVATIONS:
            raise ValueError(
                f"autoencoder: expected an activation of {', '.join(ACTIVATIONS)}, got {self.last_activation}"
            )
        for half in halves:
            if half.shortcut and half.widths[-1] % self.latent_channels:
                raise ValueError(
                    f"autoencoder: expected a width that {self.latent_channels} latent channels divide, got "
                    f"{half.widths[-1]}: these do not belong together"
                )
            narrow = [stage.width for stage in half.stages if stage.attends and stage.width < self.head_dim]
            if narrow:
                raise ValueError(f"attention: expected a width of at least {self.head_dim}, got {narrow[0]}")

    @property
    def image_channels(self) -> tuple[int, int]:
        """Image channels that go in and that come out."""
        return self.in_channels, self.out_channels
