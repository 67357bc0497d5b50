"""ExactVAE: decode and encode latent-diffusion images without damage. ComfyUI nodes and a Python library.

Importing this package imports nothing heavy: every public name is resolved when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model_management.loader import load_vae
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    from .vae_model.checkpoint.save import save
    from .vae_model.errors import InputError, MemoryBudgetError, UnexpectedError, VAEFileError
    from .vae_model.vae import VAE

__version__ = "0.1.0"
WEB_DIRECTORY = "./js"

_HOME = {
    "InputError": ".vae_model.errors",
    "MemoryBudgetError": ".vae_model.errors",
    "NODE_CLASS_MAPPINGS": ".nodes",
    "NODE_DISPLAY_NAME_MAPPINGS": ".nodes",
    "UnexpectedError": ".vae_model.errors",
    "VAE": ".vae_model.vae",
    "VAEFileError": ".vae_model.errors",
    "load_vae": ".model_management.loader",
    "save": ".vae_model.checkpoint.save",
}

__all__ = [
    "NODE_CLASS_MAPPINGS",
    "NODE_DISPLAY_NAME_MAPPINGS",
    "VAE",
    "WEB_DIRECTORY",
    "InputError",
    "MemoryBudgetError",
    "UnexpectedError",
    "VAEFileError",
    "load_vae",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
