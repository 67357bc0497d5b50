"""The host's TAESD and TAEF2 as coders: two sequences of layers, and two numbers that may be parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...exact.layer import UnsupportedModule
from ...exact.ops.pixel_shuffle import shuffled_first, unshuffled_last
from ...exact.read import describe, require_children, require_plain
from ..coder import Coder
from .program import limit, tiny_program

_PARTS = {"taesd_encoder", "taesd_decoder"}
_PACKING = ("EncoderFlux2", "DecoderFlux2")
"""Classes of the host's that have four latent cells in the channels of one, around the sequence that they are."""


def is_hosted(model: Any) -> bool:
    """Whether a model is of the host's class."""
    return any(hasattr(model, part) for part in _PARTS)


def hosted_decoder(model: Any) -> Coder:
    """The decoder; UnsupportedModule, naming the module, for what is not as the host wrote it."""
    _require_known(model, "decode")
    (first, *layers), packed = _layers(model.taesd_decoder, "taesd_decoder")
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
    _require_known(model, "encode")
    layers, packed = _layers(model.taesd_encoder, "taesd_encoder")
    shift, scale = float(model.vae_shift), float(model.vae_scale)
    program = tiny_program(nn.Sequential(*layers))
    if packed:
        program = unshuffled_last(program, None, 4 * program.out_channels)
    return Coder(program, lambda rows: (rows * 0.5).add_(0.5), lambda rows: rows / scale + shift)


def _layers(coder: Any, name: str) -> tuple[list[nn.Module], bool]:
    """The layers of a sequence, and whether it packs; newer hosts give their sequences classes of their own."""
    packed = describe(coder) in _PACKING
    forward = type(coder).__base__.forward if packed else getattr(type(coder), "forward", None)  # pyright: ignore
    if not isinstance(coder, nn.Sequential) or forward is not nn.Sequential.forward:
        raise UnsupportedModule(f"{name}: expected a plain sequence of layers, got {describe(coder)}")
    require_plain(coder)
    return list(coder), packed


def _require_known(model: Any, method: str) -> None:
    if not hasattr(model, f"taesd_{method}r"):
        raise UnsupportedModule(f"{describe(model)}: expected a taesd_{method}r, got none: load the other half too")
    if method in vars(model):
        raise UnsupportedModule(f"{describe(model)}: expected its own {method}, got a replaced one")
    require_children(model, describe(model), _PARTS)
