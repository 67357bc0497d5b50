"""How much memory an untiled run of a tiny autoencoder takes, counted as for the others in `ldm.memory`."""

from __future__ import annotations

from collections.abc import Sequence

from .config import TinyConfig


def tiny_elements(config: TinyConfig, direction: str) -> float:
    """Live activation elements per image pixel at the peak of an untiled run, "decode" or "encode"."""
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
            source = widths[stage - 1] * max(share, shares[stage - 1])  # upsampled before its convolution
            worst = max(worst, source + width * share, widths[stage - 1] * (share + shares[stage - 1]))
    return worst
