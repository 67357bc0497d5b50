"""From shapes and settings to the configuration of a deep compression autoencoder.

Shapes tell all but activations, shortcuts next to the latents and, without larger scales, the size of heads. In every
published model a BatchNorm goes with ReLU and the other norm with SiLU, both shortcuts are there, and heads have 32
channels.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace

from ..family import Shapes
from ..hints import Hints, consecutive, flag, number, word
from .config import DCConfig, DCLevels, Stage

USUAL = {"rms_norm": "silu", "batch_norm": "relu"}
"""Norm -> the activation that goes with it."""
HEAD_DIM, LAST_ACTIVATION = 32, "relu"
STEPS = "downsample_block_type", "upsample_block_type"
"""What diffusers calls the kind of step between levels, of the encoder and of the decoder."""
_SCALE = "attn.to_qkv_multiscale.{}.{}.weight"


def infer_dc(shapes: Shapes, hints: Hints) -> DCConfig:
    """KeyError or ValueError where they do not describe one."""
    encoder = decoder = None
    if "encoder.conv_out.weight" in shapes:
        encoder = _levels(shapes, hints, "encoder.down_blocks", shapes["encoder.conv_out.weight"][1])
        encoder = _told(encoder, hints, "encoder")
        encoder = replace(encoder, shortcut=flag(hints, "encoder_out_shortcut", default=True))
    if "decoder.conv_in.weight" in shapes:
        decoder = _levels(shapes, hints, "decoder.up_blocks", shapes["decoder.conv_in.weight"][0])
        decoder = _told(decoder, hints, "decoder")
        decoder = replace(decoder, shortcut=flag(hints, "decoder_in_shortcut", default=True))
    in_channels = _first(shapes, "encoder.conv_in")[1] if encoder else 3
    out_channels = _out_channels(shapes, decoder) if decoder else 3
    if 2 in (in_channels, out_channels):
        raise ValueError("expected pictures, got the two channels of sound, as ACE-Step's audio VAE has them")
    return DCConfig(
        shapes["decoder.conv_in.weight"][1] if decoder else shapes["encoder.conv_out.weight"][0],
        encoder,
        decoder,
        in_channels=in_channels,
        out_channels=out_channels,
        head_dim=_head_dim(shapes, hints),
        last_activation=word(hints, "decoder_conv_act_fn", LAST_ACTIVATION).lower().replace("swish", "silu"),
    )


def _first(shapes: Shapes, name: str) -> tuple[int, ...]:
    """Of a convolution that may stand in a layer."""
    return shapes[f"{name}.weight"] if f"{name}.weight" in shapes else shapes[f"{name}.conv.weight"]


def _out_channels(shapes: Shapes, decoder: DCLevels) -> int:
    if "decoder.conv_out.weight" in shapes:
        return shapes["decoder.conv_out.weight"][0]
    return shapes["decoder.conv_out.conv.weight"][0] // (4 if decoder.pixels else 1)


def _levels(shapes: Shapes, hints: Hints, row: str, deepest: int) -> DCLevels:
    """Of one half, as far as shapes tell. `deepest`: channels next to the latents."""
    decodes = row.startswith("decoder")
    stages: list[Stage] = []
    steps: list[int] = []
    """Channels of the convolution of each step between levels."""
    while f"{row}.{len(stages)}.0." in _starts(shapes, row) or (not stages and f"{row}.1.0." in _starts(shapes, row)):
        level = f"{row}.{len(stages)}"
        first = int(decodes and f"{level}.0.conv.weight" in shapes)
        stages.append(_stage(shapes, level, first))
        step = f"{level}.0.conv.weight" if decodes else f"{level}.{stages[-1].blocks}.conv.weight"
        if step in shapes:
            steps.append(shapes[step][0])
    if len(stages) == len(steps) + (stages[0].blocks == 0):
        stages.append(Stage(deepest, 0))  # only the layer next to the latents is there
    if stages[0].blocks == 0:
        stages[0] = replace(stages[1], width=max(1, stages[1].width // 2), blocks=0, attends=False, scales=())
    inner = stages[1:] if stages[0].blocks else stages[2:]
    outer = stages[:-1] if stages[0].blocks else stages[1:-1]
    wanted = [stage.width for stage in (outer if decodes else inner)]
    if steps:
        pixels = steps != wanted
        if pixels and steps != [4 * width if decodes else width // 4 for width in wanted]:
            raise ValueError(f"expected steps between levels of {wanted} channels, or packed ones, got {steps}")
    else:
        ends = _first(shapes, "decoder.conv_out" if decodes else "encoder.conv_in")[0]
        told = word(hints, STEPS[decodes], "")  # one step alone: four channels of it are one of images, or four
        pixels = told.startswith("pixel") if told else ends % 4 == 0 if decodes else ends != stages[-1].width
    return DCLevels(tuple(stages), pixels)


def _starts(shapes: Shapes, row: str) -> set[str]:
    """The first layers of the levels that have any, as beginnings of names."""
    return {f"{'.'.join(key.split('.')[:4])}." for key in shapes if key.startswith(row)}


def _stage(shapes: Shapes, level: str, first: int) -> Stage:
    """One level, whose blocks begin with number `first`; its width is 0 without any."""
    blocks = 0
    while {f"{level}.{first + blocks}.{name}.weight" for name in ("conv1", "conv_out.conv_inverted")} & shapes.keys():
        blocks += 1
    block = f"{level}.{first}"
    attends = f"{block}.conv_out.conv_inverted.weight" in shapes
    proj_in = f"{block}.{_SCALE.format('{}', 'proj_in')}"
    scales = [shapes[proj_in.format(scale)][2] for scale in range(consecutive(shapes, proj_in))]
    stored = f"{block}.attn.norm_out.running_var" if attends else f"{block}.norm.running_var"
    norm = "batch_norm" if stored in shapes else "rms_norm"
    if not blocks:
        return Stage(1, 0)
    width = shapes[f"{block}.{'conv_out.conv_inverted' if attends else 'conv1'}.weight"][1]
    return Stage(width, blocks, attends, tuple(scales), norm, USUAL[norm])


def _told(levels: DCLevels, hints: Hints, half: str) -> DCLevels:
    """With the activations that settings tell; ValueError for norms that are other ones."""
    stages, count = list(levels.stages), len(levels.stages)
    acts, norms = (_per_level(hints, name, count) for name in (f"{half}_act_fns", f"{half}_norm_types"))
    for index, stage in enumerate(stages):
        if norms and stage.blocks and norms[index] != stage.norm:
            raise ValueError(f"expected {half}_norm_types {stage.norm} at level {index}, got {norms[index]}")
        if acts and stage.blocks and not stage.attends:
            stages[index] = replace(stage, activation=acts[index].lower().replace("swish", "silu"))
    if stages[0].blocks == 0 and count > 1:
        stages[0] = replace(stages[0], activation=stages[1].activation)
    return replace(levels, stages=tuple(stages))


def _per_level(hints: Hints, name: str, count: int) -> Sequence[str]:
    """A name for each level; none where nothing is told."""
    text = word(hints, name, "")
    if not text.startswith(("[", "(")):
        return [text] * count if text else []
    try:
        names = [str(one) for one in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"expected a list of names as {name}, got {text!r}") from error
    if len(names) != count:
        raise ValueError(f"expected {count} names as {name}, got {len(names)}")
    return names


def _head_dim(shapes: Shapes, hints: Hints) -> int:
    """Channels of a head: of the weights where they tell, else as said."""
    ending = _SCALE.format(0, "proj_out")
    found = {shape[1] for key, shape in shapes.items() if key.endswith(ending)}
    dim = found.pop() if len(found) == 1 else number(hints, "attention_head_dim", HEAD_DIM)
    inner = [shape[0] for key, shape in shapes.items() if key.endswith(".attn.to_q.weight")]
    if dim < 1 or any(channels % dim for channels in inner):
        raise ValueError(f"expected an attention_head_dim that divides {max(inner)}, got {dim}")
    return dim
