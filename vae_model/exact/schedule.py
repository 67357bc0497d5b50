"""What a plan decides about every resolution level. The engine obeys it and chooses nothing by itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LevelSchedule:
    """How the planes of one resolution level are kept. Levels are counted in the order they run."""

    strip_rows: int
    """Rows of a strip of this level's planes."""
    store_hidden: bool = True
    """Whether a residual block's inner plane is stored; else its first convolution is computed twice."""
    store_enlarged: bool = True
    """Whether the upsampled plane that opens a decoder's level is stored; else it is computed up to three times."""
    store_blocks: bool = True
    """Whether results of residual blocks are stored; else everything is computed again from where the level begins."""
    store_ends: bool = True
    """Whether a result of such a block is stored where the next level begins, though no statistics are wanted of it."""
    device_share: float = 1.0
    """The share of the planes' strips that stays on the device; the others wait in host memory."""
    fast_convolution: bool = False
    """Whether 3x3 convolutions take fewer multiplications and more memory, where there is such a method and it pays."""
    stream_attention: bool = False
    """Whether keys and values wait in host memory, too, and attention takes them block by block."""

    def __post_init__(self) -> None:
        if self.strip_rows < 1:
            raise ValueError(f"strip height: expected at least 1 row, got {self.strip_rows}: make it larger")
        if not 0.0 <= self.device_share <= 1.0:
            raise ValueError(f"device share: expected 0 to 1, got {self.device_share}: correct it")

    @property
    def fast_rows(self) -> int:
        """Rows of a strip that fast convolution is prepared for; 0 without it."""
        return self.strip_rows if self.fast_convolution else 0

    @property
    def lean(self) -> bool:
        """Whether windows are made anew for every strip, as so many of them stand at once."""
        return not self.store_blocks

    @property
    def name(self) -> str:
        """The schedule in one or two words."""
        stored = (self.store_hidden, self.store_enlarged, self.store_blocks)
        word = "resident" if all(stored) else "recompute" if self.store_blocks else "recompute all"
        return word if self.device_share >= 1 else f"{word} + spill"


Schedule = tuple[LevelSchedule, ...]
"""One entry for every resolution level, in the order they run."""


def uniform(levels: int, strip_rows: int, **options: bool | float) -> Schedule:
    """The same decisions for all levels."""
    return (LevelSchedule(strip_rows, **options),) * levels  # pyright: ignore[reportArgumentType]
