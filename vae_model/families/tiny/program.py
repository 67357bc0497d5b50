"""Ops of the tiny autoencoder's halves: a plain sequence of convolutions, blocks and upsamples.

Without a norm nothing needs the whole image, so such a program runs in one pass with a halo of rows, and no plane.
The host's TAESD and TAEF2 are two sequences of layers, and two numbers that may be parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...exact.layer import Conv, UnsupportedModule
from ...exact.ops.convolve import Convolve
from ...exact.ops.squares import shuffled_first, unshuffled_last
from ...exact.ops.tiny_block import TinyBlock
from ...exact.ops.upsample import Upsample
from ...exact.program import Op, Program, make_program
from ...exact.read import describe, read_conv, read_norm, require_children, require_plain
from ..coder import Coder, all_parts_of

_PARTS = {"taesd_encoder", "taesd_decoder"}
_PACKING = ("EncoderFlux2", "DecoderFlux2")
"""Classes of the host's that have four latent cells in the channels of one, around the sequence that they are."""
ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.SiLU: "silu", nn.GELU: "gelu", nn.Mish: "mish"}


def _activation(layer: Any, name: str) -> str:
    for kind, activation in ACTIVATIONS.items():
        if type(layer) is kind and getattr(layer, "approximate", "none") == "none":
            return activation
    raise UnsupportedModule(f"{name}: expected ReLU, SiLU, GELU or Mish, got {describe(layer)}")


def tiny_program(coder: Any) -> Program:
    """The program of an EncoderTiny, a DecoderTiny, or their layers alone.

    Raises:  UnsupportedModule, naming the module, for anything without a rule.
    """
    with all_parts_of(coder):
        require_plain(coder)
        return make_program(_ops(coder))


def _ops(coder: Any) -> list[Op]:
    """Without the scalings before and after."""
    bare = type(coder) is nn.Sequential
    if not bare:
        require_children(coder, describe(coder), {"layers"})
        if type(coder).__name__ not in ("EncoderTiny", "DecoderTiny"):
            raise UnsupportedModule(f"{describe(coder)}: expected EncoderTiny or DecoderTiny")
    ops: list[Op] = []
    layers: list[Any] = list((coder if bare else coder.layers).children())
    for index, (before, layer, follower) in enumerate(zip([None, *layers], layers, [*layers[1:], None], strict=False)):
        name, upsampled = f"layers.{index}", isinstance(before, nn.Upsample)
        if upsampled and not isinstance(layer, nn.Conv2d):
            raise UnsupportedModule(f"{name}: expected a convolution after the upsample, got {describe(layer)}")
        if isinstance(layer, nn.Upsample):
            if layer.scale_factor != 2.0 or layer.mode != "nearest":
                raise UnsupportedModule(f"{name}: expected nearest x2, got {layer}")
        elif isinstance(layer, nn.Conv2d):
            stride = int(layer.stride[0])
            conv = read_conv(layer, name, stride=stride if stride in (1, 2) else 1)
            activation = _activation(follower, f"layers.{index + 1}") if type(follower) in ACTIVATIONS else None
            if upsampled and activation:
                raise UnsupportedModule(f"{name}: expected no activation after an upsample")
            ops.append(Upsample(conv) if upsampled else Convolve(conv, after=activation))
        elif hasattr(layer, "fuse"):
            ops.append(_block(layer, name))
        elif type(layer) not in ACTIVATIONS or not isinstance(before, nn.Conv2d):
            raise UnsupportedModule(f"{name}: expected a convolution or a block, got {describe(layer)}")
    if not ops or not isinstance(ops[0], Convolve) or isinstance(layers[-1], nn.Upsample):
        raise UnsupportedModule(f"{describe(coder)}: expected convolutions at both ends of its layers")
    return ops


def _block(block: Any, name: str) -> TinyBlock:
    require_children(block, name, {"conv", "skip", "fuse", "pool"})
    conv = block.conv
    convs = tuple(read_conv(conv[i], f"{name}.conv.{i}") for i in (0, 2, 4))
    activations = {_activation(conv[i], f"{name}.conv.{i}") for i in (1, 3)}
    if len(conv) != 5 or len(activations) != 1:
        raise UnsupportedModule(f"{name}.conv: expected three convolutions with one activation, got {len(conv)} layers")
    skip = None
    if not isinstance(block.skip, nn.Identity):
        skip = read_conv(block.skip, f"{name}.skip", kernel=1, padding=0)
    fuse = _activation(block.fuse, f"{name}.fuse")
    return TinyBlock((convs[0], convs[1], convs[2]), activations.pop(), skip, fuse, _pool(block, name))


def _pool(block: Any, name: str) -> tuple[Conv, Any, str, Conv] | None:
    pool = getattr(block, "pool", None)
    if pool is None:
        return None
    if len(pool) != 4:
        raise UnsupportedModule(f"{name}.pool: expected 1x1, norm, activation and 1x1, got {len(pool)} layers")
    first = read_conv(pool[0], f"{name}.pool.0", kernel=1, padding=0)
    last = read_conv(pool[3], f"{name}.pool.3", kernel=1, padding=0)
    return first, read_norm(pool[1], f"{name}.pool.1"), _activation(pool[2], f"{name}.pool.2"), last


def limit(rows: Tensor) -> Tensor:
    """The tiny decoder's first layer, 3 tanh(x / 3)."""
    return (rows / 3).tanh_().mul_(3)


def is_hosted(model: Any) -> bool:
    """Whether a model is of the host's class."""
    return any(hasattr(model, part) for part in _PARTS)


def hosted_decoder(model: Any) -> Coder:
    """The decoder; UnsupportedModule, naming the module, for what is not as the host wrote it."""
    (first, *layers), packed = _layers(model, "taesd_decoder")
    values = torch.linspace(-9, 9, 7)
    if list(first.parameters()) or not torch.allclose(first(values), limit(values)):
        raise UnsupportedModule(f"taesd_decoder.0: expected 3 tanh(x / 3), got {describe(first)}")
    shift, scale = float(model.vae_shift), float(model.vae_scale)
    program = tiny_program(nn.Sequential(*layers))
    if packed:
        program = shuffled_first(program, None)
    return Coder(program, lambda rows: limit((rows - shift).mul_(scale)), lambda rows: (rows - 0.5) * 2)


def hosted_encoder(model: Any) -> Coder:
    """The encoder, likewise."""
    layers, packed = _layers(model, "taesd_encoder")
    shift, scale = float(model.vae_shift), float(model.vae_scale)
    program = tiny_program(nn.Sequential(*layers))
    if packed:
        program = unshuffled_last(program, None, 4 * program.out_channels)
    return Coder(program, lambda rows: (rows * 0.5).add_(0.5), lambda rows: rows / scale + shift)


def _layers(model: Any, name: str) -> tuple[list[nn.Module], bool]:
    """The layers of a sequence, and whether it packs; newer hosts give their sequences classes of their own."""
    require_children(model, describe(model), _PARTS)
    coder: Any = getattr(model, name)
    packed = describe(coder) in _PACKING
    forward = type(coder).__base__.forward if packed else getattr(type(coder), "forward", None)  # pyright: ignore
    if not isinstance(coder, nn.Sequential) or forward is not nn.Sequential.forward:
        raise UnsupportedModule(f"{name}: expected a plain sequence of layers, got {describe(coder)}")
    require_plain(coder)
    return list(coder), packed
