"""The node that loads a VAE."""

from __future__ import annotations

from typing import Any

from ..model_management.loader import load_vae
from ..model_management.node_edge import in_one_line
from ..model_management.vae_files import find_vae, list_vaes


class VAELoader:
    """vae_name -> VAE."""

    DESCRIPTION = (
        "Loads an autoencoder from models/vae, or a pair from models/vae_approx, in ldm, diffusers or TAESD layout, "
        "recognised by its tensors. Files that the core cannot read are read, too. "
        "'bundled' is the small VAE that ships with ExactVAE, for trying things out."
    )
    CATEGORY = "model/loaders/ExactVAE"
    FUNCTION = "load_vae"
    RETURN_TYPES = ("VAE",)
    SEARCH_ALIASES = ("vae loader", "load autoencoder", "taesd", "exact vae loader")
    OUTPUT_TOOLTIPS = ("The loaded VAE. Works with these nodes and with the core's.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs as ComfyUI reads them."""
        return {
            "required": {
                "vae_name": (
                    list_vaes(),
                    {"tooltip": "A file in models/vae, a tiny one in models/vae_approx, or 'bundled'."},
                ),
            },
            "optional": {
                "dtype": (
                    ["auto", "float32", "bfloat16", "float16"],
                    {
                        "default": "auto",
                        "tooltip": "Number format of weights and activations. auto: bfloat16 where the card is fast at "
                        "it, else float32. float32 takes twice the memory; float16 can overflow (black images).",
                    },
                ),
                "part": (
                    "STRING",
                    {
                        "default": "",
                        "advanced": True,
                        "tooltip": "Which one, where a file holds several VAEs: the name of its part, such as ema. "
                        "Empty takes the only one there is; where there are several, the error names them.",
                    },
                ),
            },
        }

    @in_one_line
    def load_vae(self, vae_name: str, dtype: str = "auto", part: str = "") -> tuple[Any]:
        """Load by name; latents are those that the core's nodes carry, Flux.2's in squares."""
        found, wanted = find_vae(vae_name), part.strip() or None
        return (load_vae(found.source, dtype=dtype, latent_format=found.latent_format, part=wanted, pack_flux2=True),)
