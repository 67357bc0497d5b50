"""The node that turns images into latents."""

from __future__ import annotations

from typing import Any

PIXELS = ("IMAGE", {"tooltip": "The image, float 0..1. Cropped centrally to whole latent cells; alpha is dropped."})
VAE_INPUT = ("VAE", {"tooltip": "The VAE of the model that will use the latent."})


class VAEEncode:
    """pixels, vae -> LATENT."""

    DESCRIPTION = (
        "Encodes an image of any size to a latent (the posterior mean) in the memory there is, equal to the whole "
        "image at once: true statistics, no seams, nothing to set. A VAE that was not loaded by Load VAE (ExactVAE) "
        "runs its own method, with whatever that does when memory runs out."
    )
    CATEGORY = "latent/ExactVAE"
    FUNCTION = "encode"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The latent, raw as the core's nodes make it.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs as ComfyUI reads them."""
        return {"required": {"pixels": PIXELS, "vae": VAE_INPUT}}

    def encode(self, pixels: Any, vae: Any) -> tuple[dict[str, Any]]:
        """Encode; RuntimeError with the sizes where the memory does not suffice."""
        return ({"samples": vae.encode(pixels[..., :3])},)
