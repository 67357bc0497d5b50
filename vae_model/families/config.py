"""What every configuration tells."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol


class Config(Protocol):
    """What every configuration tells. They are frozen dataclasses."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that users hold."""
        ...

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        ...

    @property
    def decode_factor(self) -> int:
        """The same in what the decoder makes."""
        ...

    @property
    def image_channels(self) -> tuple[int, int]:
        """Image channels that go in and that come out."""
        ...

    @property
    def widths_of_halves(self) -> dict[str, tuple[int, ...]]:
        """Channels of the levels of encoder and decoder, those that are there, in the order in which they run."""
        ...
