"""The node that turns latents into images."""

from __future__ import annotations

from typing import Any

from ..model_management.values import flatten_frames, take_samples

SAMPLES = ("LATENT", {"tooltip": "The latent to decode: raw model latents, (batch, channels, height, width)."})
VAE_INPUT = ("VAE", {"tooltip": "The VAE that belongs to the model which made the latent."})


class VAEDecode:
    """samples, vae -> IMAGE."""

    DESCRIPTION = (
        "Decodes a latent to an image of any size in the memory there is, equal to the whole image at once: true "
        "statistics, no seams, nothing to set. A VAE that was not loaded by Load VAE (ExactVAE) runs its own method, "
        "with whatever that does when memory runs out."
    )
    CATEGORY = "latent/ExactVAE"
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The decoded image, float 0..1.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs as ComfyUI reads them."""
        return {"required": {"samples": SAMPLES, "vae": VAE_INPUT}}

    def decode(self, samples: dict[str, Any], vae: Any) -> tuple[Any]:
        """Decode; RuntimeError with the sizes where the memory does not suffice."""
        return (flatten_frames(vae.decode(take_samples(samples))),)
