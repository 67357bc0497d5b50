"""The configuration of a tiny video autoencoder, TAEHV, and whose latents it works on."""

from __future__ import annotations

from dataclasses import dataclass

from ..latent_formats import Users
from ..wan.family import Wan
from ..wan22 import Wan22

ACTIVATIONS = ("relu", "leaky_relu")
STAGES = 3
"""Of each half, a factor of 2 in space each."""
BLOCKS = 3
"""In a stage."""

FORMATS: dict[str, Users] = {
    "wan21": Wan.users[16, 8][0],
    "hunyuan_video": Users("HunyuanVideo", 0.476986),
    "wan22": Wan22.users[48, 16][0],
    "hunyuan_video15": Users("HunyuanVideo 1.5", 1.03682),
    "ltx2": Users("LTX-2, whose raw latents are normalised", 1.0),
    "raw": Users("raw latents", 1.0),
}
"""What the network works on is (raw latent - shift) * scale, or (raw latent - mean) / deviation of each channel."""
_CHANNELS = {16: ("wan21", "hunyuan_video"), 48: ("wan22",), 32: ("hunyuan_video15",), 128: ("ltx2",)}
NAMES = {
    "taehv1_5": "hunyuan_video15",
    **dict.fromkeys(("lighttaehv1_5", "lighttaehy1_5", "lighttae_hv15"), "hunyuan_video15"),
    "taew2_1": "wan21",
    "lighttaew2_1": "wan21",
    "taew2_2": "wan22",
    "lighttaew2_2": "wan22",
    "taeltx": "ltx2",
    "taehv": "hunyuan_video",
}
"""What the names of published files begin with, in the order in which they are looked for."""


LIGHT = "lighttae"
"""What the names of others' files begin with. Those of 32 channels have LeakyReLU where TAEHV's own have ReLU, which no
shape tells; the core takes all of these channels for such ones."""
TWO_KINDS = 32


def formats_of(channels: int) -> list[str]:
    """The names that latents of so many channels may have."""
    return [*_CHANNELS.get(channels, ()), "raw"]


@dataclass(frozen=True)
class TAEHVConfig:
    """Stages are in the order they run."""

    latent_channels: int
    encoder_width: int | None
    """Of all of its layers; None without one."""
    decoder_widths: tuple[int, ...] | None
    """Of the stages, and of what the last convolution reads."""
    encoder_over_time: tuple[bool, ...] = (True, True, False)
    """Whether a stage begins by making one frame of two."""
    decoder_over_time: tuple[bool, ...] = (False, True, True)
    """Whether a stage ends by making two frames of one."""
    patch: int = 1
    """Side of the squares of pixels that lie in channels."""
    act_fn: str = "relu"
    latent_format: str | None = None
    """A name in FORMATS; None where it is not known, then the latents are the network's own."""

    def __post_init__(self) -> None:
        if self.encoder_width is None and self.decoder_widths is None:
            raise ValueError("autoencoder: expected an encoder or a decoder, got neither: configure at least one")
        if self.patch not in (1, 2, 4):
            raise ValueError(f"tiny video autoencoder: expected squares of 1, 2 or 4 pixels, got {self.patch}")
        if self.act_fn not in ACTIVATIONS:
            raise ValueError(f"act_fn: expected {' or '.join(ACTIVATIONS)}, got {self.act_fn!r}: correct it")
        if sum(self.encoder_over_time) != sum(self.decoder_over_time):
            raise ValueError(
                "tiny video autoencoder: expected an encoder that leaves out as many frames as its decoder adds, got "
                f"{self.encoder_over_time} and {self.decoder_over_time}: these do not belong together"
            )

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return self.patch * 2**STAGES

    @property
    def decode_factor(self) -> int:
        """The same in what the decoder makes."""
        return self.factor

    @property
    def time_factor(self) -> int:
        """Frames of a clip per frame of its latents, behind the first one."""
        return 2 ** sum(self.decoder_over_time)

    @property
    def image_channels(self) -> tuple[int, int]:
        """Image channels that go in and that come out."""
        return 3, 3

    @property
    def widths_of_halves(self) -> dict[str, tuple[int, ...]]:
        """Channels of the stages, in the order in which they run."""
        encoder = None if self.encoder_width is None else (self.encoder_width,) * (STAGES + 1)
        halves = {"encoder": encoder, "decoder": self.decoder_widths}
        return {half: widths for half, widths in halves.items() if widths}


def taehv_elements(config: TAEHVConfig, direction: str) -> float:
    """Live activation elements per pixel of a frame of a clip at the peak of an untiled run.

    A picture takes as much as `time_factor` frames: the others are made and left out.
    """
    pixels = config.patch**2
    if direction == "encode":
        return 0.0 if config.encoder_width is None else (2.0 * config.encoder_width) / pixels + 6
    if config.decoder_widths is None:
        return 0.0
    *_, before, last = config.decoder_widths
    return max(1.5 * before, before + last) / pixels
