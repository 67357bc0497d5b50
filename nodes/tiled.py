"""The two tiled nodes, with the core's inputs in the core's order: exact in strips, or by blended tiles where asked."""

from __future__ import annotations

from typing import Any

from ..model_management.exact_vae import make_exact
from ..model_management.node_edge import (
    MEMORY_INPUT,
    flatten_frames,
    image_channels,
    in_one_line,
    inputs,
    integer,
    memory_bytes,
    with_report,
)

VAE_INPUT = ("VAE", {"tooltip": "The VAE of the model that makes or uses the latent."})

TILE_INPUTS: dict[str, Any] = {
    "tile_size": integer(
        512, 64, 32, "exact: height of a strip in pixels. blend: side of a tile; memory grows with its square."
    ),
    "overlap": integer(
        64, 0, 32, "exact: unused. blend: pixels that tiles share, at most a quarter of a tile; more costs time."
    ),
    "temporal_size": integer(
        64, 8, 4, "exact: unused, all frames of a clip run together. blend with a video VAE: frames at a time."
    ),
    "temporal_overlap": integer(8, 4, 4, "exact: unused. blend with a video VAE: frames that pieces share."),
}
for _name in ("overlap", "temporal_size", "temporal_overlap"):
    TILE_INPUTS[_name][1]["advanced"] = True

ENCODE_INPUTS: dict[str, Any] = {**TILE_INPUTS, "tile_size": ("INT", {**TILE_INPUTS["tile_size"][1], "step": 64})}
"""As the core has them: its encoder's tiles grow in steps of 64 pixels, its decoder's in steps of 32."""

MORE_INPUTS: dict[str, Any] = {
    "method": (
        ["exact", "blend"],
        {
            "default": "exact",
            "tooltip": "exact: the layers run strip by strip; the result of the whole image at once. "
            "blend: overlapping tiles, approximate.",
        },
    ),
    **MEMORY_INPUT,
}
EXACT = (
    "Exact, layer by layer in strips of that height: equal to the whole image at once. Method blend is approximate: "
    "tiles with statistics of their own, blended. So is a VAE of an unknown structure; the node then says why."
)


def method_option(vae: Any, method: str) -> dict[str, str]:
    """The method for VAEs that know several."""
    return {"method": method} if hasattr(vae, "last_report") else {}


def fit_frames(size: int, overlap: int) -> tuple[int, int]:
    """Frames at a time, at least 2, and frames shared, 1 to half of that."""
    size = max(2, size)
    return size, max(1, min(size // 2, overlap))


class VAEDecodeTiled:
    """samples, vae, tile_size, overlap -> IMAGE."""

    DESCRIPTION = f"Decodes in pieces of a chosen size. {EXACT}"
    CATEGORY = "model/latent/ExactVAE"
    FUNCTION = "decode"
    HAS_INTERMEDIATE_OUTPUT = True  # the page is sent the line again when the result comes from the host\'s cache
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The decoded image, float 0..1.",)
    INPUT_TYPES = inputs(
        {"samples": ("LATENT", {"tooltip": "The latent to decode."}), "vae": VAE_INPUT, **TILE_INPUTS}, MORE_INPUTS
    )

    @in_one_line
    def decode(
        self,
        samples: Any,
        vae: Any,
        tile_size: int = 512,
        overlap: int = 64,
        temporal_size: int = 64,
        temporal_overlap: int = 8,
        method: str = "exact",
        memory: float = 0.0,
    ) -> dict[str, Any]:
        """Decode in pieces; the temporal inputs are for video VAEs of the host."""
        vae = make_exact(vae, memory_bytes(memory))
        f, t = vae.spacial_compression_decode(), vae.temporal_compression_decode()
        side, shared = max(1, tile_size // f), min(overlap, tile_size // 4) // f
        frames, shared_frames = (None, None) if t is None else fit_frames(temporal_size // t, temporal_overlap // t)
        images = vae.decode_tiled(
            samples,
            tile_x=side,
            tile_y=side,
            overlap=shared,
            tile_t=frames,
            overlap_t=shared_frames,
            **method_option(vae, method),
        )
        return with_report(vae, flatten_frames(images))


class VAEEncodeTiled:
    """pixels, vae, tile_size, overlap -> LATENT."""

    DESCRIPTION = f"Encodes in pieces of a chosen size. {EXACT}"
    CATEGORY = "model/latent/ExactVAE"
    FUNCTION = "encode"
    HAS_INTERMEDIATE_OUTPUT = True  # the page is sent the line again when the result comes from the host\'s cache
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The latent, raw as the core's nodes make it.",)
    INPUT_TYPES = inputs(
        {"pixels": ("IMAGE", {"tooltip": "The image to encode."}), "vae": VAE_INPUT, **ENCODE_INPUTS}, MORE_INPUTS
    )

    @in_one_line
    def encode(
        self,
        pixels: Any,
        vae: Any,
        tile_size: int = 512,
        overlap: int = 64,
        temporal_size: int = 64,
        temporal_overlap: int = 8,
        method: str = "exact",
        memory: float = 0.0,
    ) -> dict[str, Any]:
        """Encode in pieces; the temporal inputs are for video VAEs of the host."""
        vae = make_exact(vae, memory_bytes(memory))
        latent = vae.encode_tiled(
            image_channels(pixels, vae),
            tile_x=tile_size,
            tile_y=tile_size,
            overlap=min(overlap, tile_size // 4),
            tile_t=temporal_size,
            overlap_t=temporal_overlap,
            **method_option(vae, method),
        )
        return with_report(vae, {"samples": latent})
