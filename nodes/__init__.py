"""ComfyUI nodes. Each file holds one theme; the ids below are public and never change."""

from .decode import VAEDecode
from .encode import VAEEncode
from .loader import VAELoader
from .tiled import VAEDecodeTiled, VAEEncodeTiled

NODE_CLASS_MAPPINGS = {
    "ExactVAELoader": VAELoader,
    "ExactVAEEncode": VAEEncode,
    "ExactVAEDecode": VAEDecode,
    "ExactVAEEncodeTiled": VAEEncodeTiled,
    "ExactVAEDecodeTiled": VAEDecodeTiled,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "ExactVAELoader": "Load VAE (ExactVAE)",
    "ExactVAEEncode": "VAE Encode (ExactVAE)",
    "ExactVAEDecode": "VAE Decode (ExactVAE)",
    "ExactVAEEncodeTiled": "VAE Encode Tiled (ExactVAE)",
    "ExactVAEDecodeTiled": "VAE Decode Tiled (ExactVAE)",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
