"""ComfyUI nodes. Each file holds one theme; the ids below are public and never change."""

from .apply import VAEApply
from .decode import VAEDecode
from .encode import VAEEncode, VAEEncodeForInpaint
from .loader import VAELoader
from .plan import VAEPlan
from .tiled import VAEDecodeTiled, VAEEncodeTiled

NODE_CLASS_MAPPINGS = {
    "ExactVAELoader": VAELoader,
    "ExactVAEEncode": VAEEncode,
    "ExactVAEDecode": VAEDecode,
    "ExactVAEEncodeTiled": VAEEncodeTiled,
    "ExactVAEDecodeTiled": VAEDecodeTiled,
    "ExactVAEEncodeForInpaint": VAEEncodeForInpaint,
    "ExactVAEApply": VAEApply,
    "ExactVAEPlan": VAEPlan,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "ExactVAELoader": "Load VAE (ExactVAE)",
    "ExactVAEEncode": "VAE Encode (ExactVAE)",
    "ExactVAEDecode": "VAE Decode (ExactVAE)",
    "ExactVAEEncodeTiled": "VAE Encode Tiled (ExactVAE)",
    "ExactVAEDecodeTiled": "VAE Decode Tiled (ExactVAE)",
    "ExactVAEEncodeForInpaint": "VAE Encode for Inpainting (ExactVAE)",
    "ExactVAEApply": "Make VAE Exact",
    "ExactVAEPlan": "VAE Plan (ExactVAE)",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
