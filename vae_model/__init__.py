"""Models: tensors in, tensors out. Nothing here asks for free memory, prints, or knows a host.

The names that ldm, sgm and diffusers gave these classes are importable from here. Importing this package imports
nothing heavy: each name is resolved when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "families.ldm.engine": "AbstractAutoencoder",
    "attention.backends": "normal_attention pytorch_attention slice_attention xformers_attention",
    "families.ldm.autoencoder": "AutoencoderKL AutoencodingEngine AutoencodingEngineLegacy",
    "families.ldm.coder": "Decoder Encoder",
    "families.ldm.distribution": "DiagonalGaussianDistribution DiagonalGaussianRegularizer IdentityRegularizer",
    "families.ldm.ema": "LitEma",
    "errors": "InputError MemoryBudgetError VAEFileError",
    "families.ldm.instantiate": "get_obj_from_str instantiate_from_config",
    "families.ldm.layers": "AttnBlock Downsample LinAttnBlock Normalize ResnetBlock Upsample make_attn nonlinearity",
    "families.tiny.model": "AutoencoderTiny",
    "families.tiny.coder": "AutoencoderTinyBlock DecoderTiny EncoderTiny",
    "families.tiny.output": "AutoencoderTinyOutput DecoderOutput",
    "training.kl_module": "AutoEncoderKL",  # needs the extra "train": importing * goes without it
    "families.ldm.unet": "Model get_timestep_embedding",
    "families.video.model": "AE3DConv AttnVideoBlock VideoDecoder VideoResBlock",
}
"""Module -> the public names that it holds."""

HOMES = {name: f".{module}" for module, names in _NAMES.items() for name in names.split()}
"""Public name -> the module that it is in."""

__all__ = sorted(HOMES.keys() - {"AutoEncoderKL"})  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
