"""Names of the HunyuanImage 2.1 autoencoder's tensors in files: the original's (ours, and ComfyUI's), diffusers'.

The original has ldm's names, but counts a decoder's levels from the smallest on. diffusers numbers the blocks and the
layers between levels in one row; in every published file a level of the encoder has two blocks, one of the decoder
three. Source of the names: Tencent-Hunyuan HunyuanImage-2.1 and diffusers (Apache-2.0), read as facts.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..layout import Layout, Rule
from ..ldm.names import LDM_MARKS, OWN_RULES

BLOCKS = 2
_MOST_LEVELS = 8
_ATTENTION = {"norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "proj": "proj_out"}
_SIZES = (
    ("encoder.down_blocks", "encoder.down", "downsample", BLOCKS),
    ("decoder.up_blocks", "decoder.up", "upsample", BLOCKS + 1),
)


def _row(theirs: str, ours: str, between: str, blocks: int) -> list[Rule]:
    """Of the levels of one half, whose blocks and layers between levels are numbered in one row."""
    rules: list[Rule] = []
    for level in range(_MOST_LEVELS):
        start = level * (blocks + 1)
        rules.append((f"{theirs}.{start + blocks}.conv.{{p}}", f"{ours}.{level}.{between}.conv.{{p}}"))
        for block in range(blocks):
            rules.append((f"{theirs}.{start + block}.{{m}}.{{p}}", f"{ours}.{level}.block.{block}.{{m}}.{{p}}"))
    return rules


_DIFFUSERS_RULES: tuple[Rule, ...] = (
    *((name, name) for name in ("{c}.conv_in.{p}", "{c}.norm_out.{p}", "{c}.conv_out.{p}")),
    ("{c}.mid_block.resnets.0.{m}.{p}", "{c}.mid.block_1.{m}.{p}"),
    ("{c}.mid_block.resnets.1.{m}.{p}", "{c}.mid.block_2.{m}.{p}"),
    *((f"{{c}}.mid_block.attentions.0.{a}.{{p}}", f"{{c}}.mid.attn_1.{b}.{{p}}") for a, b in _ATTENTION.items()),
    *(rule for size in _SIZES for rule in _row(*size)),
)


def _has_squares(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a decoder's smallest level is upsampled, which is ldm's largest, or an encoder's level is made smaller by
    a convolution to a quarter of other channels than it has."""
    up = shapes.get("decoder.up.0.upsample.conv.weight", ())
    down = shapes.get("encoder.down.0.downsample.conv.weight", ())
    return len(up) == 4 or (len(down) == 4 and down[0] != down[1])


ORIGINAL = Layout("ldm", "hunyuan_image", LDM_MARKS, OWN_RULES, sides=_has_squares, instead_of=("kl",))
DIFFUSERS = Layout(
    "diffusers",
    "hunyuan_image",
    ("decoder.up_blocks.0.norm1.weight", "encoder.down_blocks.0.norm1.weight"),
    _DIFFUSERS_RULES,
    instead_of=("kl",),
)
