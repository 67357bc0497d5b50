"""Models: tensors in, tensors out. Nothing here asks for free memory, prints, or knows a host.

The names that ldm, sgm and diffusers gave these classes are importable from here. Importing this package imports
nothing heavy: each name is resolved when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "abstract_autoencoder": "AbstractAutoencoder",
    "attention": "normal_attention pytorch_attention slice_attention xformers_attention",
    "autoencoder": "AutoencoderKL AutoencodingEngine AutoencodingEngineLegacy",
    "coder": "Decoder Encoder",
    "distribution": "DiagonalGaussianDistribution",
    "ema": "LitEma",
    "errors": "InputError MemoryBudgetError VAEFileError",
    "instantiate": "get_obj_from_str instantiate_from_config",
    "layers": "AttnBlock Downsample LinAttnBlock Normalize ResnetBlock Upsample make_attn nonlinearity",
    "regularizer": "DiagonalGaussianRegularizer IdentityRegularizer",
    "tiny": "AutoencoderTiny",
    "tiny_coder": "AutoencoderTinyBlock DecoderTiny EncoderTiny",
    "tiny_output": "AutoencoderTinyOutput DecoderOutput",
    "training.kl_module": "AutoEncoderKL",  # needs the extra "train": importing * goes without it
    "unet": "Model get_timestep_embedding",
    "video": "AE3DConv AttnVideoBlock VideoDecoder VideoResBlock",
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
