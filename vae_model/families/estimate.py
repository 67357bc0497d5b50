"""How much memory an untiled run takes, from the configuration alone. Pure arithmetic; no tensor is made.

Counted are the live activations of our modules at the worst moment; a convolution library's own workspace comes on top.
A plane is one activation. Whoever calls a layer holds its input until it returns.
"""

from __future__ import annotations

from collections.abc import Sequence

from .config import Config
from .ldm.config import KLConfig, LevelsConfig
from .tiny.config import TinyConfig
from .video.config import VideoConfig
from .video.model import TIME_MODES
from .wan.config import WanConfig

_UPSAMPLE = 1 + 4 + 4
"""Planes of the small size: source, enlarged, convolved."""
_HALVING_UPSAMPLE = 1 + 4 + 2
"""The same where the convolution halves the channels."""
_DOWNSAMPLE = 1 + 1 + 0.25
"""Source, padded copy, result."""
_ATTENTION = {"vanilla": 8, "linear": 7, "none": 0}
"""Input, q, k and v, their contiguous copies, result; linear: input, q, k and v in one, softmax, products, result."""
_TIME_ATTENTION = 21
"""What comes in, the spatial result in two orders, and a gated feed-forward layer: eight planes, a gate, a product."""


def _level_channels(
    start: int, width: int, blocks: int, attention: float = 0, resampling: float = 0, mixes: bool = False
) -> float:
    """Live channels at the worst moment of a level, in planes of the size that its blocks run at.

    A ResnetBlock holds its input, the activated copy and the result of one of its convolutions; the first block's
    input has `start` channels. Where it mixes frames, its input stands beside such three planes of the result's width.
    """
    first = max(2 * start + width, start + (3 if mixes else 2) * width)
    later = (4 if mixes else 3) * width if blocks > 1 else 0
    return max(first, later, attention * width, resampling * width)


def _levels_elements(levels: LevelsConfig, direction: str, mixing: Sequence[str] = ()) -> float:
    """Live elements per image pixel at the worst moment inside levels and middle; `mixing`: what mixes frames."""
    numbers = range(len(levels.widths))
    order = numbers if direction == "encode" else reversed(numbers)
    last = numbers[-1] if direction == "encode" else 0
    resampling = _DOWNSAMPLE if direction == "encode" else _UPSAMPLE
    if not levels.resamp_with_conv:
        resampling = 1.25 if direction == "encode" else 5  # source and result
    blocks = levels.num_res_blocks + (direction == "decode")
    deepest = levels.widths[-1]
    attention = _TIME_ATTENTION if "attention" in mixing else _ATTENTION[levels.attn_type]
    mixes = "resnet" in mixing
    worst = _level_channels(deepest, deepest, 2, attention, mixes=mixes) * 4.0 ** -numbers[-1]
    start = levels.ch if direction == "encode" else deepest
    for level in order:
        attends = attention if level in levels.attn_levels else 0
        resamples = 0 if level == last else resampling
        channels = _level_channels(start, levels.widths[level], blocks, attends, resamples, mixes)
        worst = max(worst, channels * 4.0**-level)
        start = levels.widths[level]
    return worst


def _kl_elements(config: KLConfig, direction: str) -> float:
    levels = config.encoder if direction == "encode" else config.decoder
    if levels is None:
        return 0.0
    if direction == "encode":
        return config.in_channels + _levels_elements(levels, direction)  # the image is held throughout
    mixing = TIME_MODES[config.time_mode] if isinstance(config, VideoConfig) else ()
    ends = 3 if "conv_out" in mixing else 1  # the image, its copy in the order of frames, and the mixed one
    worst = _levels_elements(levels, direction, mixing)
    return max(worst, 2.0 * levels.widths[0] + ends * config.out_ch)  # the last norm and convolution


def _wan_elements(config: WanConfig, direction: str) -> float:
    """As for KL; enlarged planes are convolved to half the channels, with which the next level begins."""
    encodes = direction == "encode"
    levels = config.encoder if encodes else config.decoder
    if levels is None:
        return 0.0
    numbers = list(range(len(levels.widths)))
    start = levels.ch if encodes else levels.widths[-1]
    worst = _level_channels(levels.widths[-1], levels.widths[-1], 2, _ATTENTION["vanilla"]) * 4.0 ** -numbers[-1]
    for level in numbers if encodes else reversed(numbers):
        width, last = levels.widths[level], level == (numbers[-1] if encodes else 0)
        resampling = 0 if last else _DOWNSAMPLE if encodes else _HALVING_UPSAMPLE
        blocks = levels.num_res_blocks + (not encodes)
        worst = max(worst, _level_channels(start, width, blocks, resampling=resampling) * 4.0**-level)
        start = width if encodes else width // 2
    if encodes:
        return worst + config.in_channels  # the image is held throughout
    return max(worst, 2.0 * levels.widths[0] + config.out_channels)  # the last norm and convolution


def _tiny_elements(config: TinyConfig, direction: str) -> float:
    encodes = direction == "encode"
    widths = config.encoder_block_out_channels if encodes else config.decoder_block_out_channels
    blocks = config.num_encoder_blocks if encodes else config.num_decoder_blocks
    if not widths:
        return 0.0
    stem = encodes and config.strided_stem
    step = 2 if encodes else config.upsampling_scaling_factor
    shares = [float(step**2) ** -(stage + stem) for stage in range(len(widths))]  # of the image's pixels
    worst = _tiny_stages(widths, blocks, shares if encodes else shares[::-1])
    if config.midblock_gn:
        deepest, count = (widths[-1], blocks[-1]) if encodes else (widths[0], blocks[0])
        worst = max(worst, 9.0 * deepest * shares[-1] if count else 0.0)  # input, two planes of four times the width
    return worst + 2 * config.in_channels if encodes else max(worst, float(widths[-1] + config.out_channels))


def _tiny_stages(widths: Sequence[int], blocks: Sequence[int], shares: Sequence[float]) -> float:
    """Blocks hold three planes; between stages the narrower, larger or smaller plane stands beside its source."""
    worst = 0.0
    for stage, (width, share) in enumerate(zip(widths, shares, strict=True)):
        worst = max(worst, 3.0 * width * share if blocks[stage] else width * share)
        if stage:
            source = widths[stage - 1] * max(share, shares[stage - 1])  # enlarged before its convolution
            worst = max(worst, source + width * share, widths[stage - 1] * (share + shares[stage - 1]))
    return worst


def untiled_elements_per_pixel(config: Config, direction: str) -> float:
    """Live activation elements per image pixel at the peak of an untiled run; `direction` is "decode" or "encode".

    Of a temporal decoder: per pixel of each of the frames that are decoded together.
    """
    if isinstance(config, WanConfig):
        return _wan_elements(config, direction)
    return _kl_elements(config, direction) if isinstance(config, KLConfig) else _tiny_elements(config, direction)
