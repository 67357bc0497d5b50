"""What convolutions over frames saw last: it stays from one part of a clip to the next, so that nothing is done twice.

A clip that runs part by part is then, to every convolution, the whole clip: the frames before a part's first one are
not zeros but those that the part before ended with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..extent import Extent


class Past:
    """The last frames that went into each convolution, whole planes of the run's dtype.

    A part reads the rows of these and then puts its own last frames in their place, from the first row to the last.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        """`device`: where they lie, that of the run or main memory."""
        self.dtype, self.device = dtype, device
        self.continues = False
        """Whether frames came before those of the part under way."""
        self.turned = False
        """Whether that part goes by columns."""
        self._kept: dict[str, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that are kept now."""
        return sum(kept.nbytes for kept in self._kept.values())

    def before(self, name: str, size: Extent, count: int, top: int, bottom: int) -> Tensor:
        """Rows top..bottom of the `count` frames kept of what goes into a layer, (count, C, rows, W); zeros at first.

        Args:    name: the layer's. size: of the plane that goes into it.
        """
        return self._plane(name, size, count)[:, :, top:bottom]

    def keep(self, name: str, size: Extent, count: int, top: int, frames: Tensor) -> None:
        """Take the last of these rows of frames (n, C, rows, W), from row `top` on, for the part that follows."""
        rows = self._plane(name, size, count)[:, :, top : top + frames.shape[2]]
        new = min(count, len(frames))
        if new < count:
            rows[: count - new] = rows[new:].clone()
        if new:
            rows[count - new :] = frames[-new:]

    def _plane(self, name: str, size: Extent, count: int) -> Tensor:
        """(count, C, H, W), rows and columns as this part has them."""
        kept = self._kept.get(name)
        if kept is None:
            height, width = (size.width, size.height) if self.turned else (size.height, size.width)
            kept = torch.zeros((count, size.channels, height, width), dtype=self.dtype, device=self.device)
            kept = self._kept[name] = kept.contiguous(memory_format=torch.channels_last)
        return kept.transpose(2, 3) if self.turned else kept
