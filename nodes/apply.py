"""The node that makes a VAE exact for every node after it."""

from __future__ import annotations

from typing import Any

from ..model_management.exact_vae import make_exact
from ..model_management.node_edge import MEMORY_INPUT, in_one_line, inputs, memory_bytes


class VAEApply:
    """vae -> VAE."""

    DESCRIPTION = (
        "Makes a VAE exact and low on memory for every node that it is given to, the core's and those of other packs: "
        "decode, encode, both tiled nodes, inpainting, upscalers, detailers. Tiles become strips of the same height "
        "with the result of the whole image. The VAE that goes in is not changed."
    )
    CATEGORY = "model/latent/ExactVAE"
    FUNCTION = "apply"
    RETURN_TYPES = ("VAE",)
    OUTPUT_TOOLTIPS = ("The same VAE, exact. A VAE of an unknown structure runs as before and says so in the log.",)
    SEARCH_ALIASES = ("exact vae", "tiled vae", "low memory vae", "vae patch")
    INPUT_TYPES = inputs({"vae": ("VAE", {"tooltip": "Any VAE."})}, MEMORY_INPUT)

    @in_one_line
    def apply(self, vae: Any, memory: float = 0.0) -> tuple[Any]:
        """An exact copy."""
        return (make_exact(vae, memory_bytes(memory)),)
