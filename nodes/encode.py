"""The node that turns images into latents."""

from __future__ import annotations

from typing import Any

from ..model_management.exact_vae import make_exact
from ..model_management.node_edge import MEMORY_INPUT, image_channels, in_one_line, memory_bytes, with_report

PIXELS = ("IMAGE", {"tooltip": "The image, float 0..1. Cropped centrally to whole latent cells; alpha is dropped."})
VAE_INPUT = ("VAE", {"tooltip": "The VAE of the model that will use the latent. Any loader's."})


class VAEEncode:
    """pixels, vae -> LATENT."""

    DESCRIPTION = (
        "Encodes an image of any size to a latent (the posterior mean) in the memory there is, equal to the whole "
        "image at once: true statistics, no seams, nothing to set. Exact for image VAEs of the KL and TAESD families "
        "and for single frames of Wan 2.1 and Qwen-Image; any other VAE runs its own method, and the node says why."
    )
    CATEGORY = "model/latent/ExactVAE"
    FUNCTION = "encode"
    HAS_INTERMEDIATE_OUTPUT = True  # the page is sent the line again when the result comes from the host\'s cache
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The latent, raw as the core's nodes make it.",)
    SEARCH_ALIASES = ("exact encode", "encode image", "image to latent", "low memory encode", "tiled encode")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs as ComfyUI reads them."""
        return {"required": {"pixels": PIXELS, "vae": VAE_INPUT}, "optional": MEMORY_INPUT}

    @in_one_line
    def encode(self, pixels: Any, vae: Any, memory: float = 0.0) -> dict[str, Any]:
        """Encode; MemoryBudgetError, one line, where the memory does not suffice."""
        vae = make_exact(vae, memory_bytes(memory))
        return with_report(vae, {"samples": vae.encode(image_channels(pixels, vae))})
