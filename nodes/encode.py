"""The nodes that turn images into latents: whole ones, and those of which a part shall be painted anew."""

from __future__ import annotations

from typing import Any

from ..model_management.exact_vae import make_exact
from ..model_management.masks import grey_out, grow_mask
from ..model_management.node_edge import (
    MEMORY_INPUT,
    image_channels,
    in_one_line,
    inputs,
    integer,
    memory_bytes,
    with_report,
)

PIXELS = ("IMAGE", {"tooltip": "The image, float 0..1. Cropped centrally to whole latent cells; alpha is dropped."})
VAE_INPUT = ("VAE", {"tooltip": "The VAE of the model that will use the latent. Any loader's."})


class VAEEncode:
    """pixels, vae -> LATENT."""

    DESCRIPTION = (
        "Encodes an image of any size to a latent (the posterior mean) in the memory there is, equal to the whole "
        "image at once: true statistics, no seams, nothing to set. Exact for image VAEs of the KL and TAESD families, "
        "and for pictures and clips of Wan 2.1, Wan 2.2 and Qwen-Image; any other VAE runs its own method, and the "
        "node says why."
    )
    CATEGORY = "model/latent/ExactVAE"
    FUNCTION = "encode"
    HAS_INTERMEDIATE_OUTPUT = True  # the page is sent the line again when the result comes from the host\'s cache
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The latent, raw as the core's nodes make it.",)
    SEARCH_ALIASES = ("exact encode", "encode image", "image to latent", "low memory encode", "tiled encode")
    INPUT_TYPES = inputs({"pixels": PIXELS, "vae": VAE_INPUT}, MEMORY_INPUT)

    @in_one_line
    def encode(self, pixels: Any, vae: Any, memory: float = 0.0) -> dict[str, Any]:
        """Encode; MemoryBudgetError, one line, where the memory does not suffice."""
        vae = make_exact(vae, memory_bytes(memory))
        return with_report(vae, {"samples": vae.encode(image_channels(pixels, vae))})


class VAEEncodeForInpaint:
    """pixels, vae, mask -> LATENT with a noise mask."""

    DESCRIPTION = (
        "Encodes an image for inpainting: what the mask covers becomes grey, the rest is encoded exactly in the memory "
        "there is, and the grown mask goes along as noise mask. Inputs and result are those of the core's node."
    )
    CATEGORY = "model/latent/ExactVAE"
    FUNCTION = "encode"
    HAS_INTERMEDIATE_OUTPUT = True  # the page is sent the line again when the result comes from the host\'s cache
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The latent with its noise mask.",)
    SEARCH_ALIASES = ("inpaint", "masked encode", "exact inpaint", "tiled inpaint encode")
    INPUT_TYPES = inputs(
        {
            "pixels": ("IMAGE", {"tooltip": "The image, float 0..1."}),
            "vae": ("VAE", {"tooltip": "The VAE of the model that will inpaint. Any loader's."}),
            "mask": ("MASK", {"tooltip": "1 where the image shall be made anew."}),
            "grow_mask_by": integer(6, 0, 1, "Pixels by which the noise mask grows.", most=64),
        },
        MEMORY_INPUT,
    )

    @in_one_line
    def encode(self, pixels: Any, vae: Any, mask: Any, grow_mask_by: int = 6, memory: float = 0.0) -> dict[str, Any]:
        """Encode; MemoryBudgetError, one line, where the memory does not suffice."""
        vae = make_exact(vae, memory_bytes(memory))
        pixels, mask = grey_out(image_channels(pixels, vae), mask, int(vae.spacial_compression_encode()))
        latent = {"samples": vae.encode(pixels), "noise_mask": grow_mask(mask, grow_mask_by)}
        return with_report(vae, latent)
