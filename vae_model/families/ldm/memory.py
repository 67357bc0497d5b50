"""How much memory an untiled run takes, from the configuration alone. Pure arithmetic; no tensor is made.

Counted are the live activations of our modules at the worst moment; a convolution library's own workspace comes on top.
A plane is one activation. Whoever calls a layer holds its input until it returns.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..halves import HalvesConfig
from .config import LevelsConfig

UPSAMPLE = 1 + 4 + 4
"""Planes of the small size: source, upsampled, convolved."""
HALVING_UPSAMPLE = 1 + 4 + 2
"""The same where the convolution halves the channels."""
DOWNSAMPLE = 1 + 1 + 0.25
"""Source, padded copy, result."""
ATTENTION = {"vanilla": 8, "linear": 7, "none": 0}
"""Input, q, k and v, their contiguous copies, result; linear: input, q, k and v in one, softmax, products, result."""
TIME_ATTENTION = 21
"""What comes in, the spatial result in two orders, and a gated feed-forward layer: eight planes, a gate, a product."""


def level_channels(
    start: int, width: int, blocks: int, attention: float = 0, resampling: float = 0, mixes: bool = False
) -> float:
    """Live channels at the worst moment of a level, in planes of the size that its blocks run at.

    A ResnetBlock holds its input, the activated copy and the result of one of its convolutions; the first block's
    input has `start` channels. Where it mixes frames, its input stands beside such three planes of the result's width.
    """
    first = max(2 * start + width, start + (3 if mixes else 2) * width)
    later = (4 if mixes else 3) * width if blocks > 1 else 0
    return max(first, later, attention * width, resampling * width)


def coder_elements(
    config: HalvesConfig[LevelsConfig],
    direction: str,
    ends: tuple[int, int],
    mixing: Sequence[str] = (),
    *,
    halving: bool = False,
) -> float:
    """Live elements per image pixel at the worst moment of a whole encoder or decoder.

    Args:    ends: image channels that go in and that come out. mixing: what of the decoder mixes frames.
             halving: whether its upsamples halve the channels, with which the next level begins.
    """
    encodes = direction == "encode"
    levels, mixing = config.halves.get(f"{direction}r"), () if encodes else mixing
    if levels is None:
        return 0.0
    resampling = DOWNSAMPLE if encodes else HALVING_UPSAMPLE if halving else UPSAMPLE
    if not levels.resamp_with_conv:
        resampling = 1.25 if encodes else 5  # source and result
    attention = TIME_ATTENTION if "attention" in mixing else ATTENTION[levels.attn_type]
    mixes = "resnet" in mixing
    numbers, deepest = range(len(levels.widths)), levels.widths[-1]
    worst = level_channels(deepest, deepest, 2, attention, mixes=mixes) * 4.0 ** -numbers[-1]
    start = levels.ch if encodes else deepest
    for level in numbers if encodes else reversed(numbers):
        width, last = levels.widths[level], level == (numbers[-1] if encodes else 0)
        attends = attention if level in levels.attn_levels else 0
        blocks = levels.num_res_blocks + (not encodes)
        channels = level_channels(start, width, blocks, attends, 0 if last else resampling, mixes)
        worst = max(worst, channels * 4.0**-level)
        start = width // 2 if halving and not encodes else width
    if encodes:
        return worst + ends[0]  # the image is held throughout
    images = 3 if "conv_out" in mixing else 1  # the image, its copy in the order of frames, and the mixed one
    return max(worst, 2.0 * levels.widths[0] + images * ends[1])  # the last norm and convolution
