"""Names of the tensors of Wan 2.2 and Qwen-Image 2.1 in files: the original's (ours, and ComfyUI's), diffusers'.

The first counts a level's blocks and the layer to the next level in one row; in every published file a level of the
encoder has two blocks, one of the decoder three. Source: Wan2.2 and diffusers (Apache-2.0), read as facts.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..layout import Rule
from .names import BLOCK, DIFFUSERS_ENDS, RESAMPLE, own_rules

UNIT_MARKS = (
    "decoder.upsamples.0.upsamples.0.residual.2.weight",
    "encoder.downsamples.0.downsamples.0.residual.2.weight",
)
UNIT_DIFFUSERS_MARKS = (
    "decoder.up_blocks.0.upsampler.resample.1.weight",
    "encoder.down_blocks.0.downsampler.resample.1.weight",
)
BLOCKS = 2
_UNITS = {"encoder": "encoder.downsamples.{i}.downsamples", "decoder": "decoder.upsamples.{i}.upsamples"}

UNIT_RULES = own_rules(f"{unit}.{{k}}" for unit in _UNITS.values())

_DIFFUSERS_BLOCKS: tuple[Rule, ...] = (
    ("{c}.mid_block.resnets.0", "{c}.middle.0"),
    ("{c}.mid_block.resnets.1", "{c}.middle.2"),
    ("encoder.down_blocks.{i}.resnets.{k}", f"{_UNITS['encoder']}.{{k}}"),
    ("decoder.up_blocks.{i}.resnets.{k}", f"{_UNITS['decoder']}.{{k}}"),
)
_DIFFUSERS_RESAMPLE: tuple[Rule, ...] = (
    ("encoder.down_blocks.{i}.downsampler", f"{_UNITS['encoder']}.{BLOCKS}"),
    ("decoder.up_blocks.{i}.upsampler", f"{_UNITS['decoder']}.{BLOCKS + 1}"),
)
UNIT_DIFFUSERS_RULES: tuple[Rule, ...] = (
    *DIFFUSERS_ENDS,
    *((f"{theirs}.{name}", f"{ours}.{name}") for theirs, ours in _DIFFUSERS_RESAMPLE for name in RESAMPLE),
    *((f"{theirs}.{a}", f"{ours}.{b}") for theirs, ours in _DIFFUSERS_BLOCKS for a, b in BLOCK.items()),
)


def taps(shapes: Mapping[str, tuple[int, ...]], first: str) -> set[int]:
    """Frames that the first convolutions of the halves see, "conv1" or "conv_in"; 0 of weights without such an axis."""
    found = (shapes.get(f"{half}.{first}.weight") for half in ("decoder", "encoder"))
    return {shape[2] if len(shape) == 5 else 0 for shape in found if shape is not None}
