"""How much memory an untiled run takes, from the configuration alone. Pure arithmetic; no tensor is made.

Counted are the live activations of our modules at the worst moment; a convolution library's own workspace comes on top.
"""

from __future__ import annotations

from .config import Config, KLConfig, LevelsConfig


def _block_elements(width_in: int, width_out: int) -> int:
    """Live channels inside a ResnetBlock at its worst: input, activated copy and result of one of its convolutions."""
    return max(2 * width_in + width_out, width_in + 2 * width_out)


def _decoder_elements(levels: LevelsConfig, out_ch: int) -> float:
    """Live elements per output pixel at the worst moment of an untiled decode."""
    worst, width = 0.0, levels.widths[-1]
    for level in reversed(range(len(levels.widths))):
        share = 4.0**-level  # of the output's pixels
        worst = max(worst, share * _block_elements(width, levels.widths[level]), share * 3 * levels.widths[level])
        width = levels.widths[level]
        if level:
            worst = max(worst, share * width * (1 + 4 + 4))  # source, enlarged, convolved
    return max(worst, 2.0 * width + out_ch)


def _encoder_elements(levels: LevelsConfig) -> float:
    """Live elements per input pixel at the worst moment of an untiled encode."""
    worst, width = 0.0, levels.ch
    for level, level_width in enumerate(levels.widths):
        share = 4.0**-level
        worst = max(worst, share * _block_elements(width, level_width), share * 3 * level_width)
        width = level_width
        worst = max(worst, share * width * 2.25)  # source, padded copy, result of a quarter
    return worst


def untiled_elements_per_pixel(config: Config, direction: str) -> float:
    """Live activation elements per image pixel at the peak of an untiled run; `direction` is "decode" or "encode"."""
    if isinstance(config, KLConfig):
        levels = config.decoder if direction == "decode" else config.encoder
        if levels is None:
            return 0.0
        return _decoder_elements(levels, config.out_ch) if direction == "decode" else _encoder_elements(levels)
    widths = config.decoder_block_out_channels if direction == "decode" else config.encoder_block_out_channels
    if not widths:
        return 0.0
    last = widths[len(widths) - 1]
    if direction == "encode":
        return 3.0 * widths[0]
    inner = widths[-2] if len(widths) > 1 else last
    blocks_at_full_size = config.num_decoder_blocks[-1] > 0
    return max(1.25 * inner + last, 3.0 * last if blocks_at_full_size else 0.0)
