"""3x3 convolutions by the kernels of tiles.c, which are Winograd's F(4x4, 3x3) like `winograd.py` in one piece.

There every step goes through main memory, since a matrix product of a library wants many rows; here a block of tiles
stays in a processor's caches from the first step to the last.
"""

from __future__ import annotations

from torch import Tensor

from .blocks import Blocks, plan_blocks, run_tiles
from .filters import CONVOLVE
from .kernels import kernels


class NativeTiles(Blocks):
    """Sizes of one convolution's blocks, and the convolution."""

    def transform_weight(self, weight: Tensor) -> Tensor:
        """(out, in, 3, 3) -> flat, as `convolve` wants it."""
        return self.pack(weight, CONVOLVE)

    def convolve(self, window: Tensor, weight: Tensor, bias: Tensor | None, scratch: Tensor, out: Tensor) -> None:
        """Write the convolution of a window into `out`, one image.

        Args:    window: (n + 2 or more, width + sum(columns), in), dense. weight: from `transform_weight`.
                 bias: (out,) or None. scratch: flat, float32, of `scratch_bytes`. out: (n, width, out), dense.
        """
        library = kernels()
        assert library is not None
        run_tiles(library, self, CONVOLVE, window, weight, bias, scratch, out)


def plan_native_tiles(channels: tuple[int, int], width: int, rows: int, threads: int) -> NativeTiles | None:
    """The geometry for a source of that width and strips of so many rows; None where there are no kernels for it."""
    library = kernels()
    if library is None:
        return None
    blocks = plan_blocks(library, channels, width, rows, CONVOLVE, threads)
    return None if blocks is None else NativeTiles(*blocks)
