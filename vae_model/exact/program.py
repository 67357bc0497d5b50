"""From a module tree to a list of steps. What is not understood is refused by name; nothing is guessed.

Modules are found by attribute (`conv_in`, `mid.block_1`, `up[i].block[j]`, ...): the names are the checkpoint's, so the
host's own ldm modules are read just as well as ours. A program holds modules, never weights.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .spec import (
    Conv,
    Statistics,
    UnsupportedModule,
    describe,
    read_conv,
    read_norm,
    require_children,
    require_plain,
)
from .step import Attend, Convolve, Enlarge, Pack, Program, Residual, Size, Step, TinyBlock, Unpack, step_size
from .temporal_program import TIME_CODERS, last_conv, time_residual


def unpacked_first(program: Program, statistics: Statistics | None) -> Program:
    """The program of packed latents, normalised by `statistics` if there are any, from that of raw ones."""
    return Program((Unpack(statistics), *program.steps), 4 * program.in_channels, program.out_channels)


def packed_last(program: Program, statistics: Statistics | None, channels: int) -> Program:
    """The program to packed latents of so many channels from that to moments, or to raw ones."""
    return Program((*program.steps, Pack(statistics, channels)), program.in_channels, channels)


def build_program(coder: Any, *, before: Any = None, after: Any = None) -> Program:
    """The program of an ldm or tiny encoder or decoder.

    Args:    coder: the module tree. before, after: 1x1 convolutions around it (post_quant_conv, quant_conv) or None.
    Raises:  UnsupportedModule, naming the module, for anything without a rule.
    """
    try:
        return _build(coder, before, after)
    except (AttributeError, IndexError) as error:
        raise UnsupportedModule(f"{describe(coder)}: expected all parts of a coder, got {error}") from error


def _build(coder: Any, before: Any, after: Any) -> Program:
    from .tiny_program import tiny_steps

    require_plain(coder)
    if hasattr(coder, "layers") or type(coder) is nn.Sequential:
        steps = tiny_steps(coder)
    elif hasattr(coder, "up"):
        steps = [*_head(coder), *_middle(coder.mid), *_ascend(coder), *_tail(coder)]
        require_children(coder, describe(coder), {"conv_in", "mid", "up", "norm_out", "conv_out"})
    elif hasattr(coder, "down"):
        steps = [*_head(coder), *_descend(coder), *_middle(coder.mid), *_tail(coder)]
        require_children(coder, describe(coder), {"conv_in", "mid", "down", "norm_out", "conv_out"})
    else:
        raise UnsupportedModule(f"{describe(coder)}: expected an ldm or tiny coder, found none of up, down and layers")
    for layer, name, index in ((before, "post_quant_conv", 0), (after, "quant_conv", len(steps) + 1)):
        if layer is not None:
            require_plain(layer)
            steps.insert(index, Convolve(read_conv(layer, name, kernel=1, padding=0)))
    _require_one_border(steps)
    first: Any = steps[0]
    size = Size(first.conv.in_channels, 1024, 1024)
    for step in steps:
        size = step_size(step, size)
    return Program(tuple(steps), first.conv.in_channels, size.channels)


def _convs(step: Step) -> list[Conv]:
    """The convolutions of a step that may look beyond the image's border."""
    if isinstance(step, (Convolve, Enlarge)):
        return [step.conv]
    if isinstance(step, Residual):
        return [step.conv1, step.conv2]
    return list(step.convs) if isinstance(step, TinyBlock) else []


def _require_one_border(steps: list[Step]) -> None:
    """Refuse circular convolutions beside others: computed rows would not continue at the other end."""
    convs = [conv for step in steps for conv in _convs(step) if conv.kernel > 1 and conv.pad_before]
    other = next((conv for conv in convs if not conv.circular), None)
    if other is not None and any(conv.circular for conv in convs):
        raise UnsupportedModule(f"{other.name}: expected circular padding as elsewhere, got {other.mode}")


def _part(owner: Any, attribute: str, name: str) -> Any:
    """A part by its attribute; UnsupportedModule where there is none."""
    if not hasattr(owner, attribute):
        raise UnsupportedModule(f"{name}: expected a part {attribute}, got none")
    return getattr(owner, attribute)


def _require_class(layer: Any, name: str, wanted: tuple[str, ...]) -> None:
    """Attributes alone do not tell what a forward does: the class must carry one of the names that ldm gave it."""
    if type(layer).__name__ not in wanted:
        raise UnsupportedModule(f"{name}: expected {' or '.join(wanted)}, got {describe(layer)}")


def _head(coder: Any) -> list[Step]:
    if getattr(coder, "temb_ch", 0):
        raise UnsupportedModule(f"{describe(coder)}: expected no time embedding, got {coder.temb_ch} channels of it")
    if type(coder) not in TIME_CODERS:
        _require_class(coder, "coder", ("Encoder", "Decoder"))
    return [Convolve(read_conv(coder.conv_in, "conv_in"))]


def _tail(coder: Any) -> list[Step]:
    if getattr(coder, "give_pre_end", False):
        return []
    after = "tanh" if getattr(coder, "tanh_out", False) else None
    conv, over_time = last_conv(coder.conv_out)
    if after and over_time:
        raise UnsupportedModule(f"{describe(coder)}: expected no tanh behind frames that are mixed")
    return [Convolve(conv, read_norm(coder.norm_out, "norm_out"), "silu", after), *over_time]


def _middle(mid: Any) -> list[Step]:
    require_children(mid, "mid", {"block_1", "attn_1", "block_2"})
    first, attn, second = (_part(mid, part, "mid") for part in ("block_1", "attn_1", "block_2"))
    return [*_residual(first, "mid.block_1"), *_attention(attn, "mid.attn_1"), *_residual(second, "mid.block_2")]


def _blocks(level: Any, name: str) -> list[Step]:
    require_children(level, name, {"block", "attn", "upsample", "downsample"})
    steps: list[Step] = []
    blocks, attentions = _part(level, "block", name), _part(level, "attn", name)
    if len(attentions) not in (0, len(blocks)):
        raise UnsupportedModule(f"{name}: expected as many attentions as blocks, got {len(attentions)}")
    for i, block in enumerate(blocks):
        steps += _residual(block, f"{name}.block.{i}")
        if len(attentions) > 0:
            steps += _attention(level.attn[i], f"{name}.attn.{i}")
    return steps


def _ascend(decoder: Any) -> list[Step]:
    steps: list[Step] = []
    for i in reversed(range(len(decoder.up))):
        level = decoder.up[i]
        steps += _blocks(level, f"up.{i}")
        if hasattr(level, "upsample"):
            _require_class(level.upsample, f"up.{i}.upsample", ("Upsample",))
            require_children(level.upsample, f"up.{i}.upsample", {"conv"})
            if getattr(level.upsample, "scale_factor", 2.0) != 2.0:
                factor = level.upsample.scale_factor
                raise UnsupportedModule(f"up.{i}.upsample: expected a factor of 2, got {factor}")
            steps.append(Enlarge(_resampling_conv(level.upsample, f"up.{i}.upsample")))
    return steps


def _descend(encoder: Any) -> list[Step]:
    steps: list[Step] = []
    for i, level in enumerate(encoder.down):
        steps += _blocks(level, f"down.{i}")
        if hasattr(level, "downsample"):
            _require_class(level.downsample, f"down.{i}.downsample", ("Downsample",))
            require_children(level.downsample, f"down.{i}.downsample", {"conv"})
            conv = _resampling_conv(level.downsample, f"down.{i}.downsample", stride=2, padding=0, extra_pad=1)
            steps.append(Convolve(conv))
    return steps


def _resampling_conv(layer: Any, name: str, *, stride: int = 1, padding: int = 1, extra_pad: int | None = None) -> Conv:
    if not hasattr(layer, "conv"):
        raise UnsupportedModule(f"{name}: expected resampling with a convolution, got one without")
    return read_conv(layer.conv, f"{name}.conv", stride=stride, padding=padding, extra_pad=extra_pad)


_BLOCK_PARTS = {"norm1", "conv1", "norm2", "conv2", "nin_shortcut", "dropout", "swish", "nonlinearity"}


def _residual(block: Any, name: str) -> list[Step]:
    over_time = time_residual(block, name)
    if not over_time:
        _require_class(block, name, ("ResnetBlock",))
    require_children(block, name, _BLOCK_PARTS | {"time_stack"} if over_time else _BLOCK_PARTS)
    for part, kind in (("dropout", nn.Dropout), ("swish", nn.SiLU), ("nonlinearity", nn.SiLU)):
        layer = getattr(block, part, None)
        if isinstance(layer, nn.Module) and type(layer) not in ((kind, nn.Identity) if part == "dropout" else (kind,)):
            raise UnsupportedModule(f"{name}.{part}: expected {kind.__name__}, got {describe(layer)}")
    norm1, conv1, norm2, conv2 = (_part(block, part, name) for part in ("norm1", "conv1", "norm2", "conv2"))
    shortcut = getattr(block, "nin_shortcut", None)
    if shortcut is not None and getattr(conv1, "in_channels", 0) == getattr(conv1, "out_channels", 1):
        raise UnsupportedModule(f"{name}: expected no shortcut between equal widths, got one")
    step = Residual(
        read_norm(norm1, f"{name}.norm1"),
        read_conv(conv1, f"{name}.conv1"),
        read_norm(norm2, f"{name}.norm2"),
        read_conv(conv2, f"{name}.conv2"),
        None if shortcut is None else read_conv(shortcut, f"{name}.nin_shortcut", kernel=1, padding=0),
    )
    return [step, *over_time]


_ATTENTION_CLASSES = ("AttnBlock", "MemoryEfficientAttnBlock", "MemoryEfficientAttnBlockPytorch")


def _attention(layer: Any, name: str) -> list[Step]:
    if isinstance(layer, nn.Identity):
        return []
    _require_class(layer, name, _ATTENTION_CLASSES)
    require_children(layer, name, {"norm", "q", "k", "v", "proj_out"})
    convs = [
        read_conv(_part(layer, part, name), f"{name}.{part}", kernel=1, padding=0)
        for part in ("q", "k", "v", "proj_out")
    ]
    return [Attend(read_norm(_part(layer, "norm", name), f"{name}.norm"), *convs)]
