"""What configurations of an encoder and a decoder share, whatever their levels are."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar


class Levels(Protocol):
    """The resolution levels of an encoder or a decoder. Level 0 has full resolution."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        ...

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        ...


L = TypeVar("L", bound=Levels)


class HalvesConfig(Generic[L]):
    """What configurations of an encoder and a decoder tell, of which one may be absent."""

    encoder: L | None
    decoder: L | None

    def __post_init__(self) -> None:
        if not self.halves:
            raise ValueError("autoencoder: expected an encoder or a decoder, got neither: configure at least one")

    @property
    def halves(self) -> dict[str, L]:
        """Those that are there, by name."""
        both = {"encoder": self.encoder, "decoder": self.decoder}
        return {half: levels for half, levels in both.items() if levels}

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return next(iter(self.halves.values())).factor

    @property
    def decode_factor(self) -> int:
        """The same in what the decoder makes."""
        return self.factor

    @property
    def widths_of_halves(self) -> dict[str, tuple[int, ...]]:
        """Channels of the levels: the encoder's from full size on, the decoder's towards it."""
        steps = {"encoder": 1, "decoder": -1}
        return {half: levels.widths[:: steps[half]] for half, levels in self.halves.items()}
