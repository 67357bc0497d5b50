"""For which convolutions the methods of fewer multiplications are taken."""

from __future__ import annotations

import torch

from ...kernels.profile import profile_of
from ...kernels.winograd import LEAST_CHANNELS, LEAST_WIDTH
from ..layer import Conv
from .context import Context


def pays(context: Context, conv: Conv, width: int) -> bool:
    """Whether this convolution of planes of that width can run so, and gains by it."""
    return (
        context.dtype == torch.float32
        and profile_of(context.device.type).fewer_multiplications
        and context.channels_last
        and (conv.kernel, conv.stride, conv.pad_before, conv.pad_after) == (3, 1, 1, 1)
        and min(conv.channels) >= LEAST_CHANNELS
        and width >= LEAST_WIDTH
    )
