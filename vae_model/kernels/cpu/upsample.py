"""Nearest x2 and a 3x3 convolution by the kernels of tiles.c: 81 products of 6x6 source values for 8x8 results."""

from __future__ import annotations

from torch import Tensor

from .blocks import Blocks, plan_blocks, run_tiles
from .filters import ENLARGE_EVEN, ENLARGE_ODD
from .kernels import kernels

_FILTERS = ENLARGE_EVEN, ENLARGE_ODD
_SOME_CHANNELS = 128
"""Results that are made at once: products of more would take more memory than everything else."""


class NativeUpsample(Blocks):
    """Sizes of one enlargement's blocks, and the enlargement."""

    def transform_weight(self, weight: Tensor, *, odd: bool) -> Tensor:
        """(out, in, 3, 3) -> flat, as `enlarge` wants it. `odd`: tiles begin with odd rows of results."""
        return self.pack(weight, _FILTERS[odd])

    def upsample(
        self,
        window: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scratch: Tensor,
        out: Tensor,
        top: int,
        *,
        odd: bool,
    ) -> None:
        """Write rows top, top + 1, ... of the enlarged plane into `out`, one image.

        Args:    window: (n, width + sum(columns), in), dense: the source from row (top - 1) // 2 on, with its borders.
                 weight: from `transform_weight` with the same `odd`, which must be True where `top` is odd.
                 bias: (out,) or None. scratch: flat, float32, of `scratch_bytes`. out: (rows, 2 * width, out), dense.
        """
        library = kernels()
        assert library is not None
        assert odd or top % 2 == 0
        skip = int(odd and top % 2 == 0)  # the row above begins the first tiles
        run_tiles(library, self, _FILTERS[odd], window, weight, bias, scratch, out, skip)


def plan_native_upsample(channels: tuple[int, int], width: int, rows: int, threads: int) -> NativeUpsample | None:
    """For a source of that width and strips of so many of its rows; None where there are no kernels for it."""
    library = kernels()
    if library is None:
        return None
    blocks = plan_blocks(library, channels, width, rows, ENLARGE_EVEN, threads, _SOME_CHANNELS)
    return None if blocks is None else NativeUpsample(*blocks)
