"""Names of the temporal decoder's tensors in files: sgm's (ours, ComfyUI's) and diffusers'.

Source of the names: Stability-AI generative-models (MIT) and diffusers (Apache-2.0), read as facts.
"""

from __future__ import annotations

from ..layout import Rule
from ..ldm.names import ATTENTION, DIFFUSERS_BLOCKS, diffusers_rules

VIDEO_MARKS = (
    "decoder.mid.block_1.mix_factor",
    "decoder.mid.attn_1.mix_factor",
    "decoder.conv_out.time_mix_conv.weight",
)
"""A file under our names with one of these has a temporal decoder."""
VIDEO_DIFFUSERS_MARK = "decoder.mid_block.resnets.0.spatial_res_block.norm1.weight"
"""A diffusers file with this has one."""

_OUR_BLOCKS = ("decoder.up.{i}.block.{j}", "decoder.mid.block_{j}")
_OUR_ATTENTIONS = ("decoder.up.{i}.attn.{j}", "decoder.mid.attn_1")

VIDEO_RULES: tuple[Rule, ...] = tuple(
    (template, template)
    for template in (
        *(f"{block}.{name}" for block in _OUR_BLOCKS for name in ("mix_factor", "time_stack.{rest}")),
        *(
            f"{attention}.{name}"
            for attention in _OUR_ATTENTIONS
            for name in ("mix_factor", "time_mix_block.{rest}", "video_time_embed.{rest}")
        ),
        "decoder.conv_out.time_mix_conv.{p}",
    )
)
"""What our layout has beside the image model's names."""


def _blocks_of(half: str) -> list[Rule]:
    """Where diffusers keeps the residual blocks of one half, as in the image model."""
    rules = [rule for rule in DIFFUSERS_BLOCKS if rule[0].startswith((half, "{c}"))]
    return [(theirs.replace("{c}", half), ours.replace("{c}", half)) for theirs, ours in rules]


_TIME_STACK = (
    ("temporal_res_block.norm1.{p}", "time_stack.in_layers.0.{p}"),
    ("temporal_res_block.conv1.{p}", "time_stack.in_layers.2.{p}"),
    ("temporal_res_block.norm2.{p}", "time_stack.out_layers.0.{p}"),
    ("temporal_res_block.conv2.{p}", "time_stack.out_layers.3.{p}"),
    ("time_mixer.mix_factor", "mix_factor"),
)
_FRAME_BLOCKS = [(f"{theirs}.spatial_res_block", ours) for theirs, ours in _blocks_of("decoder")]
VIDEO_DIFFUSERS_RULES: tuple[Rule, ...] = (
    *((f"{theirs}.{name}", f"{ours}.{own}") for theirs, ours in _blocks_of("decoder") for name, own in _TIME_STACK),
    ("decoder.time_conv_out.{p}", "decoder.conv_out.time_mix_conv.{p}"),
    *diffusers_rules(ATTENTION, (*_blocks_of("encoder"), *_FRAME_BLOCKS)),
)
"""diffusers' layout: in its decoder, blocks of single frames stand beside what mixes these."""
