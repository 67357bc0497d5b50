"""The two halves of an autoencoder as the engine sees them: a program, and what is done to rows before and after it.

Ours and the host's own classes are told by their names and parts; what is around a coder is known for these alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .exact.program import Program, build_program
from .exact.spec import UnsupportedModule, describe, require_children
from .tiny import AutoencoderTiny

_KL_CLASSES = ("AutoencoderKL", "AutoencodingEngine", "AutoencodingEngineLegacy")
_KL_PARTS = {"encoder", "decoder", "quant_conv", "post_quant_conv", "regularization", "loss", "model_ema"}


@dataclass(frozen=True)
class Half:
    """Raw latents to raw images, or images in -1..1 to raw latents; `prepare` and `finish` take rows (B, C, n, W)."""

    program: Program
    prepare: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]


def decoder_half(model: Any) -> Half:
    """The decoder; UnsupportedModule, naming the module, where the engine has no rule for it."""
    if hasattr(model, "taesd_decoder"):
        return _taesd_decoder(model)
    _require_known(model, "decoder", "decode")
    if isinstance(model, AutoencoderTiny):
        layers, shift, scale = model.decoder, model.shift_factor, model.scaling_factor
        return Half(build_program(layers), lambda rows: _limit((rows - shift) * scale), lambda rows: rows * 2 - 1)
    program = build_program(model.decoder, before=getattr(model, "post_quant_conv", None))
    return Half(program, _same, _same)


def encoder_half(model: Any, latent_channels: int) -> Half:
    """The encoder, to the mean of the posterior; UnsupportedModule as for the decoder."""
    if hasattr(model, "taesd_encoder"):
        return _taesd_encoder(model)
    _require_known(model, "encoder", "encode")
    if isinstance(model, AutoencoderTiny):
        layers, shift, scale = model.encoder, model.shift_factor, model.scaling_factor
        return Half(build_program(layers), lambda rows: (rows + 1) / 2, lambda rows: rows / scale + shift)
    regularization = getattr(model, "regularization", None)
    if type(regularization).__name__ not in ("NoneType", "DiagonalGaussianRegularizer"):
        raise UnsupportedModule(f"regularization: expected a Gaussian, got {describe(regularization)}: it runs untiled")
    program = build_program(model.encoder, after=getattr(model, "quant_conv", None))
    if program.out_channels not in (latent_channels, 2 * latent_channels):
        raise UnsupportedModule(
            f"{describe(model.encoder)}: expected {latent_channels} channels, with or without variances, "
            f"got {program.out_channels}: it runs untiled"
        )
    return Half(program, _same, lambda rows: rows[:, :latent_channels])


def _same(rows: Tensor) -> Tensor:
    return rows


def _limit(rows: Tensor) -> Tensor:
    """The tiny decoder's first layer."""
    return torch.tanh(rows / 3) * 3


def _require_known(model: Any, part: str, method: str) -> None:
    """Refuse a model that may do something around its coder that nobody here knows of."""
    if not hasattr(model, part):
        raise UnsupportedModule(f"{describe(model)}: expected a {part}, got none: load the other half too")
    if method in vars(model) or "forward" in vars(model):
        raise UnsupportedModule(f"{describe(model)}: expected its own {method}, got a replaced one: it runs untiled")
    if isinstance(model, AutoencoderTiny):
        return
    if describe(model) not in _KL_CLASSES:
        raise UnsupportedModule(
            f"{describe(model)}: expected an image autoencoder of the KL or TAESD family: it runs untiled"
        )
    require_children(model, describe(model), _KL_PARTS)


# -- the host's TAESD: two plain sequences, and two numbers that may be parameters ------------------------------------


def _taesd_decoder(model: Any) -> Half:
    _require_taesd(model, "decode")
    first, *layers = model.taesd_decoder
    values = torch.linspace(-9, 9, 7)
    if list(first.parameters()) or not torch.allclose(first(values), _limit(values)):
        raise UnsupportedModule(f"taesd_decoder.0: expected 3 tanh(x / 3), got {describe(first)}: it runs untiled")
    shift, scale = float(model.vae_shift), float(model.vae_scale)
    program = build_program(nn.Sequential(*layers).eval())
    return Half(program, lambda rows: _limit((rows - shift) * scale), lambda rows: (rows - 0.5) * 2)


def _taesd_encoder(model: Any) -> Half:
    _require_taesd(model, "encode")
    shift, scale = float(model.vae_shift), float(model.vae_scale)
    program = build_program(model.taesd_encoder)
    return Half(program, lambda rows: rows * 0.5 + 0.5, lambda rows: rows / scale + shift)


def _require_taesd(model: Any, method: str) -> None:
    if method in vars(model):
        raise UnsupportedModule(f"{describe(model)}: expected its own {method}, got a replaced one: it runs untiled")
    require_children(model, describe(model), {"taesd_encoder", "taesd_decoder"})
