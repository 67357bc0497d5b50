"""The two halves of an autoencoder as the engine sees them: a program, and what is done to rows before and after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .exact.program import Program, build_program
from .exact.spec import UnsupportedModule, describe
from .tiny import AutoencoderTiny


@dataclass(frozen=True)
class Half:
    """Raw latents to raw images, or images in -1..1 to raw latents; `prepare` and `finish` take rows (B, C, n, W)."""

    program: Program
    prepare: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]


def _same(rows: Tensor) -> Tensor:
    return rows


def decoder_half(model: Any) -> Half:
    """The decoder; UnsupportedModule, naming the module, where the engine has no rule for it."""
    if not hasattr(model, "decoder"):
        raise UnsupportedModule(f"{describe(model)}: expected a decoder, got none: load the other half too")
    if isinstance(model, AutoencoderTiny):

        def limit(rows: Tensor) -> Tensor:
            return torch.tanh((rows - model.shift_factor) * model.scaling_factor / 3) * 3

        return Half(build_program(model.decoder), limit, lambda rows: rows * 2 - 1)
    program = build_program(model.decoder, before=getattr(model, "post_quant_conv", None))
    return Half(program, _same, _same)


def encoder_half(model: Any, latent_channels: int) -> Half:
    """The encoder, to the mean of the posterior; UnsupportedModule as for the decoder."""
    if not hasattr(model, "encoder"):
        raise UnsupportedModule(f"{describe(model)}: expected an encoder, got none: load the other half too")
    if isinstance(model, AutoencoderTiny):

        def unscale(rows: Tensor) -> Tensor:
            return rows / model.scaling_factor + model.shift_factor

        return Half(build_program(model.encoder), lambda rows: (rows + 1) / 2, unscale)
    program = build_program(model.encoder, after=getattr(model, "quant_conv", None))
    return Half(program, _same, lambda rows: rows[:, :latent_channels])
