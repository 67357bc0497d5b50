"""Nearest x2 and a 3x3 convolution by the kernels of tiles.c: 81 products of 6x6 source values for 8x8 results.

Along a row the even results are a filter (a, b + c, 0) of the source, the odd ones (0, a + b, c), where (a, b, c) are
the convolution's taps. Winograd's F(4, 3) takes six products for four results of either. At the point 1 both filters
are the same, at 0 the odd one is nothing and at infinity the even one: nine products for eight results. For rows that
begin with an odd one, and so with the source a row further down, the odd filter is (a + b, c, 0); both then end in 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..spec import Conv
from ..winograd import TAPS, TILE
from .blocks import Blocks, plan_blocks, run_tiles
from .packing import pack_weight

_EVEN = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.float64)
_ODD = torch.tensor([[0, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.float64)
_ODD_FIRST = torch.tensor([[1, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.float64)
_BEGINS_EVEN = ((_EVEN,), (_EVEN,), (_EVEN, _ODD), (_EVEN, _ODD), (_EVEN, _ODD), (_ODD,))
_BEGINS_ODD = ((_EVEN, _ODD_FIRST), (_EVEN,), *[(_EVEN, _ODD_FIRST)] * 3, ())
"""Filters at the points 0, 1, -1, 1/2, -2 and infinity."""
_KINDS = 1, 2
"""As tiles.c calls them."""
_PLANES = 81


class NativeEnlargement(Blocks):
    """Sizes of one enlargement's blocks, and the enlargement."""

    def transform_weight(self, weight: Tensor, *, odd: bool) -> Tensor:
        """(out, in, 3, 3) -> flat, as `enlarge` wants it. `odd`: tiles begin with odd rows of results."""
        rows, columns = _BEGINS_ODD if odd else _BEGINS_EVEN, _BEGINS_EVEN
        taps: list[Tensor] = []
        filters: list[int] = []
        for row_point, row_filters in zip(TAPS, rows, strict=True):
            for column_point, column_filters in zip(TAPS, columns, strict=True):
                filters.append(len(row_filters) * len(column_filters))
                taps += [torch.kron(row_point @ r, column_point @ c) for r in row_filters for c in column_filters]
        return pack_weight(weight, torch.stack(taps), filters, self.panel, self.depth)

    def enlarge(
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
        assert odd or top % 2 == 0
        run_tiles(self, window, weight, bias, scratch, out, _KINDS[odd], skip=int(odd and top % 2 == 0))


def plan_native_enlargement(conv: Conv, width: int, rows: int) -> NativeEnlargement | None:
    """For a source of that width and strips of so many of its rows; None where there are no kernels for it."""
    blocks = plan_blocks(conv, width, -(-rows // TILE) * -(-width // TILE), _PLANES)
    return None if blocks is None else NativeEnlargement(*blocks)
