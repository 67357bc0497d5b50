"""The two tiled nodes: approximate, overlapping tiles, with the core's inputs in the core's order."""

from __future__ import annotations

from typing import Any

from ..model_management.values import flatten_frames, take_samples

VAE_INPUT = ("VAE", {"tooltip": "The VAE of the model that makes or uses the latent."})

TILE_INPUTS: dict[str, Any] = {
    "tile_size": (
        "INT",
        {
            "default": 512,
            "min": 64,
            "max": 4096,
            "step": 32,
            "tooltip": "Side of a tile in pixels. Memory grows with its square.",
        },
    ),
    "overlap": (
        "INT",
        {
            "default": 64,
            "min": 0,
            "max": 4096,
            "step": 32,
            "tooltip": "Pixels that tiles share, at most a quarter of the tile. More hides seams and costs time.",
        },
    ),
    "temporal_size": (
        "INT",
        {
            "default": 64,
            "min": 8,
            "max": 4096,
            "step": 4,
            "tooltip": "Video VAEs only: frames at a time. Unused for images.",
        },
    ),
    "temporal_overlap": (
        "INT",
        {
            "default": 8,
            "min": 4,
            "max": 4096,
            "step": 4,
            "tooltip": "Video VAEs only: frames shared. Unused for images.",
        },
    ),
}


def fit_overlap(tile_size: int, overlap: int) -> int:
    """The overlap in pixels, at most a quarter of the tile, as the core's nodes have it."""
    return min(overlap, tile_size // 4)


def fit_frames(size: int, overlap: int) -> tuple[int, int]:
    """Frames at a time, at least 2, and frames shared, 1 to half of that."""
    size = max(2, size)
    return size, max(1, min(size // 2, overlap))


class VAEDecodeTiled:
    """samples, vae, tile_size, overlap -> IMAGE, approximate."""

    DESCRIPTION = (
        "Approximate: decodes overlapping tiles and blends them. Each tile has its own statistics, so colours may "
        "shift and seams may show. Takes the memory of one tile and more time the larger the overlap."
    )
    CATEGORY = "latent/ExactVAE"
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The decoded image, float 0..1; approximate.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs as ComfyUI reads them, in the core's order."""
        return {
            "required": {"samples": ("LATENT", {"tooltip": "The latent to decode."}), "vae": VAE_INPUT, **TILE_INPUTS}
        }

    def decode(
        self,
        samples: dict[str, Any],
        vae: Any,
        tile_size: int = 512,
        overlap: int = 64,
        temporal_size: int = 64,
        temporal_overlap: int = 8,
    ) -> tuple[Any]:
        """Decode by tiles; the temporal inputs are for video VAEs of the host."""
        f, t = vae.spacial_compression_decode(), vae.temporal_compression_decode()
        side, shared = tile_size // f, fit_overlap(tile_size, overlap) // f
        frames, shared_frames = (None, None) if t is None else fit_frames(temporal_size // t, temporal_overlap // t)
        images = vae.decode_tiled(
            take_samples(samples), tile_x=side, tile_y=side, overlap=shared, tile_t=frames, overlap_t=shared_frames
        )
        return (flatten_frames(images),)


class VAEEncodeTiled:
    """pixels, vae, tile_size, overlap -> LATENT, approximate."""

    DESCRIPTION = (
        "Approximate: encodes overlapping tiles and blends them. Each tile has its own statistics, so colours may "
        "shift and seams may show. Takes the memory of one tile and more time the larger the overlap."
    )
    CATEGORY = "latent/ExactVAE"
    FUNCTION = "encode"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The latent; approximate.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs as ComfyUI reads them, in the core's order."""
        return {"required": {"pixels": ("IMAGE", {"tooltip": "The image to encode."}), "vae": VAE_INPUT, **TILE_INPUTS}}

    def encode(
        self,
        pixels: Any,
        vae: Any,
        tile_size: int = 512,
        overlap: int = 64,
        temporal_size: int = 64,
        temporal_overlap: int = 8,
    ) -> tuple[dict[str, Any]]:
        """Encode by tiles; the temporal inputs are for video VAEs of the host."""
        latent = vae.encode_tiled(
            pixels[..., :3],
            tile_x=tile_size,
            tile_y=tile_size,
            overlap=fit_overlap(tile_size, overlap),
            tile_t=temporal_size,
            overlap_t=temporal_overlap,
        )
        return ({"samples": latent},)
