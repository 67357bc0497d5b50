"""The node that turns latents into images."""

from __future__ import annotations

from typing import Any

from ..model_management.exact_vae import make_exact
from ..model_management.node_edge import MEMORY_INPUT, flatten_frames, in_one_line, inputs, memory_bytes, with_report

SAMPLES = ("LATENT", {"tooltip": "The latent to decode: raw model latents, (batch, channels, height, width)."})
VAE_INPUT = ("VAE", {"tooltip": "The VAE that belongs to the model which made the latent. Any loader's."})


class VAEDecode:
    """samples, vae -> IMAGE."""

    DESCRIPTION = (
        "Decodes a latent to an image of any size in the memory there is, equal to the whole image at once: true "
        "statistics, no seams, nothing to set. Exact for image VAEs of the KL and TAESD families, and for pictures "
        "and clips of Wan 2.1, Wan 2.2 and Qwen-Image; any other VAE runs its own method, and the node says why."
    )
    CATEGORY = "model/latent/ExactVAE"
    FUNCTION = "decode"
    HAS_INTERMEDIATE_OUTPUT = True  # the page is sent the line again when the result comes from the host\'s cache
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The decoded image, float 0..1.",)
    SEARCH_ALIASES = ("exact decode", "decode latent", "latent to image", "low memory decode", "tiled decode")
    INPUT_TYPES = inputs({"samples": SAMPLES, "vae": VAE_INPUT}, MEMORY_INPUT)

    @in_one_line
    def decode(self, samples: Any, vae: Any, memory: float = 0.0) -> dict[str, Any]:
        """Decode; MemoryBudgetError, one line, where the memory does not suffice."""
        vae = make_exact(vae, memory_bytes(memory))
        return with_report(vae, flatten_frames(vae.decode(samples)))
