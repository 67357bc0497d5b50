"""From a module tree to a list of ops. What is not understood is refused by name; nothing is guessed.

Modules are found by attribute (`conv_in`, `mid.block_1`, `up[i].block[j]`, ...): the names are the checkpoint's, so the
host's own ldm modules are read just as well as ours. A program holds modules, never weights.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ...exact.layer import Conv, UnsupportedModule
from ...exact.ops.attend import Attend
from ...exact.ops.convolve import Convolve
from ...exact.ops.residual import Residual
from ...exact.ops.upsample import Upsample
from ...exact.program import Op, Program, make_program
from ...exact.read import describe, read_conv, read_norm, require_children, require_plain
from ..video.program import TIME_CODERS, last_conv, time_residual


def build_program(coder: Any, *, before: Any = None, after: Any = None) -> Program:
    """The program of an ldm encoder or decoder.

    Args:    coder: the module tree. before, after: 1x1 convolutions around it (post_quant_conv, quant_conv) or None.
    Raises:  UnsupportedModule, naming the module, for anything without a rule.
    """
    try:
        return _build(coder, before, after)
    except (AttributeError, IndexError) as error:
        raise UnsupportedModule(f"{describe(coder)}: expected all parts of a coder, got {error}") from error


def _build(coder: Any, before: Any, after: Any) -> Program:
    require_plain(coder)
    if hasattr(coder, "up"):
        ops = [*_head(coder), *read_middle(coder.mid), *_ascend(coder), *_tail(coder)]
        require_children(coder, describe(coder), {"conv_in", "mid", "up", "norm_out", "conv_out"})
    elif hasattr(coder, "down"):
        ops = [*_head(coder), *_descend(coder), *read_middle(coder.mid), *_tail(coder)]
        require_children(coder, describe(coder), {"conv_in", "mid", "down", "norm_out", "conv_out"})
    else:
        raise UnsupportedModule(f"{describe(coder)}: expected an ldm or tiny coder, found none of up, down and layers")
    return make_program(_around(ops, before, after))


def _around(ops: list[Op], before: Any, after: Any) -> list[Op]:
    """Ops with the 1x1 convolutions around them, where there are any."""
    for layer, name, index in ((before, "post_quant_conv", 0), (after, "quant_conv", len(ops) + 1)):
        if layer is not None:
            require_plain(layer)
            ops.insert(index, Convolve(read_conv(layer, name, kernel=1, padding=0)))
    return ops


def _part(owner: Any, attribute: str, name: str) -> Any:
    """A part by its attribute; UnsupportedModule where there is none."""
    if not hasattr(owner, attribute):
        raise UnsupportedModule(f"{name}: expected a part {attribute}, got none")
    return getattr(owner, attribute)


def _require_class(layer: Any, name: str, wanted: tuple[str, ...]) -> None:
    """Attributes alone do not tell what a forward does: the class must carry one of the names that ldm gave it."""
    if type(layer).__name__ not in wanted:
        raise UnsupportedModule(f"{name}: expected {' or '.join(wanted)}, got {describe(layer)}")


def _head(coder: Any) -> list[Op]:
    if getattr(coder, "temb_ch", 0):
        raise UnsupportedModule(f"{describe(coder)}: expected no time embedding, got {coder.temb_ch} channels of it")
    if type(coder) not in TIME_CODERS:
        _require_class(coder, "coder", ("Encoder", "Decoder"))
    return [Convolve(read_conv(coder.conv_in, "conv_in"))]


def _tail(coder: Any) -> list[Op]:
    if getattr(coder, "give_pre_end", False):
        return []
    after = "tanh" if getattr(coder, "tanh_out", False) else None
    conv, over_time = last_conv(coder.conv_out)
    if after and over_time:
        raise UnsupportedModule(f"{describe(coder)}: expected no tanh behind frames that are mixed")
    return [Convolve(conv, read_norm(coder.norm_out, "norm_out"), "silu", after), *over_time]


def read_middle(mid: Any) -> list[Op]:
    """The ops between the levels of an encoder and those of a decoder: a block, attention, a block."""
    require_children(mid, "mid", {"block_1", "attn_1", "block_2"})
    first, attn, second = (_part(mid, part, "mid") for part in ("block_1", "attn_1", "block_2"))
    return [
        *read_residual(first, "mid.block_1"),
        *_attention(attn, "mid.attn_1"),
        *read_residual(second, "mid.block_2"),
    ]


def _blocks(level: Any, name: str) -> list[Op]:
    require_children(level, name, {"block", "attn", "upsample", "downsample"})
    ops: list[Op] = []
    blocks, attentions = _part(level, "block", name), _part(level, "attn", name)
    if len(attentions) not in (0, len(blocks)):
        raise UnsupportedModule(f"{name}: expected as many attentions as blocks, got {len(attentions)}")
    for i, block in enumerate(blocks):
        ops += read_residual(block, f"{name}.block.{i}")
        if len(attentions) > 0:
            ops += _attention(level.attn[i], f"{name}.attn.{i}")
    return ops


def _ascend(decoder: Any) -> list[Op]:
    ops: list[Op] = []
    for i in reversed(range(len(decoder.up))):
        level = decoder.up[i]
        ops += _blocks(level, f"up.{i}")
        if hasattr(level, "upsample"):
            _require_class(level.upsample, f"up.{i}.upsample", ("Upsample",))
            require_children(level.upsample, f"up.{i}.upsample", {"conv"})
            if getattr(level.upsample, "scale_factor", 2.0) != 2.0:
                factor = level.upsample.scale_factor
                raise UnsupportedModule(f"up.{i}.upsample: expected a factor of 2, got {factor}")
            ops.append(Upsample(_resampling_conv(level.upsample, f"up.{i}.upsample")))
    return ops


def _descend(encoder: Any) -> list[Op]:
    ops: list[Op] = []
    for i, level in enumerate(encoder.down):
        ops += _blocks(level, f"down.{i}")
        if hasattr(level, "downsample"):
            _require_class(level.downsample, f"down.{i}.downsample", ("Downsample",))
            require_children(level.downsample, f"down.{i}.downsample", {"conv"})
            conv = _resampling_conv(level.downsample, f"down.{i}.downsample", stride=2, padding=0, extra_pad=1)
            ops.append(Convolve(conv))
    return ops


def _resampling_conv(layer: Any, name: str, *, stride: int = 1, padding: int = 1, extra_pad: int | None = None) -> Conv:
    if not hasattr(layer, "conv"):
        raise UnsupportedModule(f"{name}: expected resampling with a convolution, got one without")
    return read_conv(layer.conv, f"{name}.conv", stride=stride, padding=padding, extra_pad=extra_pad)


_BLOCK_PARTS = {"norm1", "conv1", "norm2", "conv2", "nin_shortcut", "dropout", "swish", "nonlinearity"}


def read_residual(block: Any, name: str) -> list[Op]:
    """A block of two convolutions, and what it does over frames."""
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
    block_op = Residual(
        read_norm(norm1, f"{name}.norm1"),
        read_conv(conv1, f"{name}.conv1"),
        read_norm(norm2, f"{name}.norm2"),
        read_conv(conv2, f"{name}.conv2"),
        None if shortcut is None else read_conv(shortcut, f"{name}.nin_shortcut", kernel=1, padding=0),
    )
    return [block_op, *over_time]


_ATTENTION_CLASSES = ("AttnBlock", "MemoryEfficientAttnBlock", "MemoryEfficientAttnBlockPytorch")


def _attention(layer: Any, name: str) -> list[Op]:
    if isinstance(layer, nn.Identity):
        return []
    _require_class(layer, name, _ATTENTION_CLASSES)
    require_children(layer, name, {"norm", "q", "k", "v", "proj_out"})
    convs = [
        read_conv(_part(layer, part, name), f"{name}.{part}", kernel=1, padding=0)
        for part in ("q", "k", "v", "proj_out")
    ]
    return [Attend(read_norm(_part(layer, "norm", name), f"{name}.norm"), *convs)]
