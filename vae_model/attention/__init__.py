"""Self-attention over all positions: back ends, block by block, and what it takes."""

from .backends import (
    ATTENTION,
    chosen_attention,
    normal_attention,
    pytorch_attention,
    set_choice,
    slice_attention,
    sliced_attention,
    streamed_by_blocks,
    xformers_attention,
)

__all__ = [
    "ATTENTION",
    "chosen_attention",
    "normal_attention",
    "pytorch_attention",
    "set_choice",
    "slice_attention",
    "sliced_attention",
    "streamed_by_blocks",
    "xformers_attention",
]
