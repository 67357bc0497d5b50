"""Names of the temporal decoder's tensors in files: sgm's (ours, ComfyUI's) and diffusers'.

Source of the names: Stability-AI generative-models (MIT) and diffusers (Apache-2.0), read as facts.
"""

from __future__ import annotations

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

VIDEO_RULES: tuple[tuple[str, str], ...] = tuple(
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

_DECODER_BLOCKS = (
    ("decoder.up_blocks.{i~}.resnets.{j}", "decoder.up.{i}.block.{j}"),
    ("decoder.mid_block.resnets.0", "decoder.mid.block_1"),
    ("decoder.mid_block.resnets.1", "decoder.mid.block_2"),
)
VIDEO_DIFFUSERS_BLOCKS: tuple[tuple[str, str], ...] = (
    ("encoder.down_blocks.{i}.resnets.{j}", "encoder.down.{i}.block.{j}"),
    ("encoder.mid_block.resnets.0", "encoder.mid.block_1"),
    ("encoder.mid_block.resnets.1", "encoder.mid.block_2"),
    *((f"{theirs}.spatial_res_block", ours) for theirs, ours in _DECODER_BLOCKS),
)
"""Where diffusers keeps the blocks of single frames."""

_TIME_STACK = (
    ("temporal_res_block.norm1.{p}", "time_stack.in_layers.0.{p}"),
    ("temporal_res_block.conv1.{p}", "time_stack.in_layers.2.{p}"),
    ("temporal_res_block.norm2.{p}", "time_stack.out_layers.0.{p}"),
    ("temporal_res_block.conv2.{p}", "time_stack.out_layers.3.{p}"),
    ("time_mixer.mix_factor", "mix_factor"),
)
VIDEO_DIFFUSERS_RULES: tuple[tuple[str, str], ...] = (
    *((f"{theirs}.{name}", f"{ours}.{own}") for theirs, ours in _DECODER_BLOCKS for name, own in _TIME_STACK),
    ("decoder.time_conv_out.{p}", "decoder.conv_out.time_mix_conv.{p}"),
)
"""What diffusers' layout has beside them."""
