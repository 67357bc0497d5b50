"""Names of the Wan 2.1 and Qwen-Image autoencoder's tensors in files: the original's (ours), diffusers'.

The original numbers the decoder's blocks and upsamples in one row over all levels, diffusers level by level.
Source of the names: Wan-Video Wan2.1 and diffusers (Apache-2.0), read as facts.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..layout import Rule

WAN_MARKS = ("decoder.middle.0.residual.0.gamma", "encoder.middle.0.residual.0.gamma")
WAN_DIFFUSERS_MARKS = ("decoder.mid_block.resnets.0.norm1.gamma", "encoder.mid_block.resnets.0.norm1.gamma")

BLOCK = {
    "norm1.gamma": "residual.0.gamma",
    "conv1.{p}": "residual.2.{p}",
    "norm2.gamma": "residual.3.gamma",
    "conv2.{p}": "residual.6.{p}",
    "conv_shortcut.{p}": "shortcut.{p}",
}
ATTENTION = ("norm.gamma", "to_qkv.{p}", "proj.{p}")
RESAMPLE = ("resample.1.{p}", "time_conv.{p}")
_ROWS = ("encoder.downsamples.{k}", "decoder.upsamples.{k}")


def own_rules(rows: Iterable[str]) -> tuple[Rule, ...]:
    """Every tensor under its own name; `rows`: where blocks and the layers between levels stand."""
    names = (
        "conv1.{p}",
        "conv2.{p}",
        "{c}.conv1.{p}",
        "{c}.head.0.gamma",
        "{c}.head.2.{p}",
        *(f"{{c}}.middle.1.{name}" for name in ATTENTION),
        *(f"{{c}}.middle.{number}.{name}" for number in (0, 2) for name in BLOCK.values()),
        *(f"{row}.{name}" for row in rows for name in (*BLOCK.values(), *RESAMPLE)),
    )
    return tuple((name, name) for name in names)


WAN_RULES = own_rules(_ROWS)

_DIFFUSERS_BLOCKS: tuple[Rule, ...] = (
    ("{c}.mid_block.resnets.0", "{c}.middle.0"),
    ("{c}.mid_block.resnets.1", "{c}.middle.2"),
    ("encoder.down_blocks.{k}", "encoder.downsamples.{k}"),
    ("decoder.up_blocks.{i}.resnets.{j}", "decoder.upsamples.{i:j}"),
)
_DIFFUSERS_RESAMPLE: tuple[Rule, ...] = (
    ("encoder.down_blocks.{k}", "encoder.downsamples.{k}"),
    ("decoder.up_blocks.{i}.upsamplers.0", "decoder.upsamples.{i:last}"),
)

DIFFUSERS_ENDS: tuple[Rule, ...] = (
    ("quant_conv.{p}", "conv1.{p}"),
    ("post_quant_conv.{p}", "conv2.{p}"),
    ("{c}.conv_in.{p}", "{c}.conv1.{p}"),
    ("{c}.norm_out.gamma", "{c}.head.0.gamma"),
    ("{c}.conv_out.{p}", "{c}.head.2.{p}"),
    *((f"{{c}}.mid_block.attentions.0.{name}", f"{{c}}.middle.1.{name}") for name in ATTENTION),
)
"""What stands before, between and behind the levels."""
WAN_DIFFUSERS_RULES: tuple[Rule, ...] = (
    *DIFFUSERS_ENDS,
    *((f"{theirs}.{a}", f"{ours}.{b}") for theirs, ours in _DIFFUSERS_BLOCKS for a, b in BLOCK.items()),
    *((f"{theirs}.{name}", f"{ours}.{name}") for theirs, ours in _DIFFUSERS_RESAMPLE for name in RESAMPLE),
)
