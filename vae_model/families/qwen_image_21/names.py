"""Names of the Qwen-Image 2.1 autoencoder's tensors in files: Wan 2.2's (ours, and ComfyUI's), diffusers'.

The names of Wan 2.2 stand for this network where weights have one tap over the frames; diffusers stores no axis of
frames. The first counts a level's blocks and the layer to the next level in one row; in every published file a level
of the encoder has two blocks, one of the decoder three. Source: Wan2.2 and diffusers (Apache-2.0), read as facts.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..layout import Layout, Rule
from ..wan.names import ATTENTION, BLOCK, RESAMPLE

BLOCKS = 2
_UNITS = {"encoder": "encoder.downsamples.{i}.downsamples", "decoder": "decoder.upsamples.{i}.upsamples"}

_WAN_RULES: tuple[Rule, ...] = tuple(
    (template, template)
    for template in (
        "conv1.{p}",
        "conv2.{p}",
        "{c}.conv1.{p}",
        "{c}.head.0.gamma",
        "{c}.head.2.{p}",
        *(f"{{c}}.middle.1.{name}" for name in ATTENTION),
        *(f"{{c}}.middle.{number}.{name}" for number in (0, 2) for name in BLOCK.values()),
        *(f"{unit}.{{k}}.{name}" for unit in _UNITS.values() for name in (*BLOCK.values(), *RESAMPLE)),
    )
)

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
_DIFFUSERS_RULES: tuple[Rule, ...] = (
    ("quant_conv.{p}", "conv1.{p}"),
    ("post_quant_conv.{p}", "conv2.{p}"),
    ("{c}.conv_in.{p}", "{c}.conv1.{p}"),
    ("{c}.norm_out.gamma", "{c}.head.0.gamma"),
    ("{c}.conv_out.{p}", "{c}.head.2.{p}"),
    *((f"{{c}}.mid_block.attentions.0.{name}", f"{{c}}.middle.1.{name}") for name in ATTENTION),
    *((f"{theirs}.{name}", f"{ours}.{name}") for theirs, ours in _DIFFUSERS_RESAMPLE for name in RESAMPLE),
    *((f"{theirs}.{a}", f"{ours}.{b}") for theirs, ours in _DIFFUSERS_BLOCKS for a, b in BLOCK.items()),
)


def _one_tap(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the first convolutions see one frame; Wan 2.2's see three."""
    found = [shapes[name] for name in ("decoder.conv1.weight", "encoder.conv1.weight") if name in shapes]
    return bool(found) and all(len(shape) == 5 and shape[2] == 1 for shape in found)


def _no_frames(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the first convolutions have no axis of frames; Wan 2.2's do."""
    return all(len(shapes.get(name, "1234")) == 4 for name in ("decoder.conv_in.weight", "encoder.conv_in.weight"))


WAN = Layout(
    "wan",
    "qwen_image_21",
    ("decoder.upsamples.0.upsamples.0.residual.2.weight", "encoder.downsamples.0.downsamples.0.residual.2.weight"),
    _WAN_RULES,
    unread="told",
    sides=_one_tap,
    instead_of=("wan",),
)
DIFFUSERS = Layout(
    "diffusers",
    "qwen_image_21",
    ("decoder.up_blocks.0.upsampler.resample.1.weight", "encoder.down_blocks.0.downsampler.resample.1.weight"),
    _DIFFUSERS_RULES,
    without_frames=True,
    sides=_no_frames,
    instead_of=("wan",),
)
