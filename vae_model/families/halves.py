"""The two halves of an autoencoder as the engine sees them: a program, and what is done to rows before and after it.

Ours and the host's own classes are told by their names and parts; what is around a coder is known for these alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..exact.layer import Statistics, UnsupportedModule
from ..exact.ops.pixel_shuffle import shuffled_first, unshuffled_last
from ..exact.program import Program
from ..exact.read import describe, read_statistics, require_children, require_plain
from .ldm.program import build_program
from .ldm.vq import VectorQuantizer
from .tiny.model import AutoencoderTiny
from .tiny.program import tiny_program
from .wan.program import wan_program

_KL_CLASSES = ("AutoencoderKL", "AutoencodingEngine", "AutoencodingEngineLegacy", "AutoencoderFlux2", "AutoencoderVQ")
_WAN_CLASS, _WAN_PARTS = "WanVAE", {"encoder", "decoder", "conv1", "conv2"}
_KL_PARTS = {"encoder", "decoder", "quant_conv", "post_quant_conv", "regularization"}
_KL_PARTS_AROUND = {"loss", "model_ema", "bn", "quantize"}


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
        program = tiny_program(layers)
        program = program if model.latent_patch == 1 else shuffled_first(program, None)
        return Half(program, lambda rows: _limit((rows - shift).mul_(scale)), lambda rows: rows * 2 - 1)
    if describe(model) == _WAN_CLASS:
        return Half(wan_program(model.decoder, before=model.conv2), _same, _same)
    program = build_program(model.decoder, before=getattr(model, "post_quant_conv", None))
    if getattr(model, "bn", None) is not None:
        return Half(shuffled_first(program, _statistics(model, 4 * program.in_channels)), _same, _same)
    if hasattr(model, "quantize"):
        return Half(program, _codebook(model, program.in_channels), _same)
    return Half(program, _same, _same)


def encoder_half(model: Any, latent_channels: int) -> Half:
    """The encoder, to the mean of the posterior; UnsupportedModule as for the decoder."""
    if hasattr(model, "taesd_encoder"):
        return _taesd_encoder(model)
    _require_known(model, "encoder", "encode")
    if isinstance(model, AutoencoderTiny):
        layers, shift, scale = model.encoder, model.shift_factor, model.scaling_factor
        program = tiny_program(layers)
        program = program if model.latent_patch == 1 else unshuffled_last(program, None, latent_channels)
        return Half(program, lambda rows: (rows + 1).div_(2), lambda rows: rows / scale + shift)
    if describe(model) == _WAN_CLASS:
        program = wan_program(model.encoder, after=model.conv1)
        _require_moments(model, program, latent_channels)
        return Half(program, _same, lambda rows: rows[:, :latent_channels])
    regularization = getattr(model, "regularization", None)
    plain = ("NoneType", "IdentityRegularizer") if hasattr(model, "quantize") else ("NoneType",)
    if type(regularization).__name__ not in (*plain, "DiagonalGaussianRegularizer"):
        raise UnsupportedModule(f"regularization: expected a Gaussian, got {describe(regularization)}")
    program = build_program(model.encoder, after=getattr(model, "quant_conv", None))
    if getattr(model, "bn", None) is not None:
        _require_moments(model, program, latent_channels // 4)
        return Half(unshuffled_last(program, _statistics(model, latent_channels), latent_channels), _same, _same)
    _require_moments(model, program, latent_channels)
    return Half(program, _same, lambda rows: rows[:, :latent_channels])


def behind(first: Callable[[Tensor], Tensor], half: Half) -> Half:
    """`half` with `first` done to its rows before all else."""
    return Half(half.program, lambda rows: half.prepare(first(rows)), half.finish)


def _require_moments(model: Any, program: Program, latent_channels: int) -> None:
    if program.out_channels not in (latent_channels, 2 * latent_channels):
        raise UnsupportedModule(
            f"{describe(model.encoder)}: expected {latent_channels} channels, with or without variances, "
            f"got {program.out_channels}"
        )


def _statistics(model: Any, channels: int) -> Statistics:
    """Of Flux.2's latents. The host's class says itself how it packs them and with which eps."""
    require_plain(model.bn)
    statistics = read_statistics(model.bn, "bn", channels)
    if type(model).__name__ == "AutoencoderFlux2":
        return statistics
    patch, eps = getattr(model, "ps", None), getattr(model, "bn_eps", None)
    if patch != [2, 2] or eps != statistics.eps:
        raise UnsupportedModule(f"bn: expected squares [2, 2] and its own eps {statistics.eps}, got {patch} and {eps}")
    return statistics


def _codebook(model: Any, channels: int) -> Callable[[Tensor], Tensor]:
    """Every latent cell by itself, so that rows do as well as the whole."""
    quantize = model.quantize
    if not isinstance(quantize, VectorQuantizer) or quantize.embedding.embedding_dim != channels:
        raise UnsupportedModule(f"quantize: expected a codebook of {channels} channels, got {describe(quantize)}")
    require_plain(quantize)
    return quantize


def _same(rows: Tensor) -> Tensor:
    return rows


def _limit(rows: Tensor) -> Tensor:
    """The tiny decoder's first layer."""
    return (rows / 3).tanh_().mul_(3)


def _require_known(model: Any, part: str, method: str) -> None:
    """Refuse a model that may do something around its coder that nobody here knows of."""
    tiny = isinstance(model, AutoencoderTiny)
    if not tiny and describe(model) not in (*_KL_CLASSES, _WAN_CLASS):
        raise UnsupportedModule(f"{describe(model)}: expected an image autoencoder of the KL or TAESD family")
    if not hasattr(model, part):
        article = "an" if part == "encoder" else "a"
        raise UnsupportedModule(f"{describe(model)}: expected {article} {part}, got none: load the other half too")
    if method in vars(model) or "forward" in vars(model):
        raise UnsupportedModule(f"{describe(model)}: expected its own {method}, got a replaced one")
    if tiny:
        return
    wan = describe(model) == _WAN_CLASS
    require_children(model, describe(model), _WAN_PARTS if wan else _KL_PARTS | _KL_PARTS_AROUND)


# -- the host's TAESD and TAEF2: two sequences, and two numbers that may be parameters --------------------------------

_PACKING = ("EncoderFlux2", "DecoderFlux2")
"""Classes of the host's that have four latent cells in the channels of one, around the sequence that they are."""


def _taesd_decoder(model: Any) -> Half:
    _require_taesd(model, "decode")
    (first, *layers), packed = _taesd_layers(model.taesd_decoder, "taesd_decoder")
    values = torch.linspace(-9, 9, 7)
    if list(first.parameters()) or not torch.allclose(first(values), _limit(values)):
        raise UnsupportedModule(f"taesd_decoder.0: expected 3 tanh(x / 3), got {describe(first)}")
    shift, scale = float(model.vae_shift), float(model.vae_scale)
    program = tiny_program(nn.Sequential(*layers))
    if packed:
        program = shuffled_first(program, None)
    return Half(program, lambda rows: _limit((rows - shift).mul_(scale)), lambda rows: (rows - 0.5) * 2)


def _taesd_encoder(model: Any) -> Half:
    _require_taesd(model, "encode")
    layers, packed = _taesd_layers(model.taesd_encoder, "taesd_encoder")
    shift, scale = float(model.vae_shift), float(model.vae_scale)
    program = tiny_program(nn.Sequential(*layers))
    if packed:
        program = unshuffled_last(program, None, 4 * program.out_channels)
    return Half(program, lambda rows: (rows * 0.5).add_(0.5), lambda rows: rows / scale + shift)


def _taesd_layers(coder: Any, name: str) -> tuple[list[nn.Module], bool]:
    """The layers of a sequence, and whether it packs; newer hosts give their sequences classes of their own."""
    packed = describe(coder) in _PACKING
    forward = type(coder).__base__.forward if packed else getattr(type(coder), "forward", None)  # pyright: ignore
    if not isinstance(coder, nn.Sequential) or forward is not nn.Sequential.forward:
        raise UnsupportedModule(f"{name}: expected a plain sequence of layers, got {describe(coder)}")
    require_plain(coder)
    return list(coder), packed


def _require_taesd(model: Any, method: str) -> None:
    if method in vars(model):
        raise UnsupportedModule(f"{describe(model)}: expected its own {method}, got a replaced one")
    require_children(model, describe(model), {"taesd_encoder", "taesd_decoder"})
