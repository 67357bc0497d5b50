"""What travels along a workflow's wires, unpacked and packed: LATENT dictionaries, IMAGE batches, reports."""

from __future__ import annotations

from typing import Any

from torch import Tensor

GIB = 2**30

MEMORY_INPUT = {
    "memory": (
        "FLOAT",
        {
            "default": 0.0,
            "min": 0.0,
            "max": 1024.0,
            "step": 0.01,  # The page rounds what is typed to it, and 0 means something else than a little.
            "tooltip": "GiB that the run may use above the weights. 0: automatic, from what is free.",
        },
    )
}


def take_samples(samples: dict[str, Any]) -> Tensor:
    """The latent tensor of a LATENT; of a nested one the first."""
    latent = samples["samples"]
    return latent.unbind()[0] if getattr(latent, "is_nested", False) else latent


def flatten_frames(images: Tensor) -> Tensor:
    """Video frames (B, T, H, W, C) as a batch of images (B * T, H, W, C); images as they are."""
    return images.reshape(-1, *images.shape[-3:]) if images.ndim == 5 else images


def image_channels(pixels: Any, vae: Any) -> Any:
    """Images (..., C) without alpha, unless the VAE takes it: ours say so, the host's take what they give."""
    return pixels[..., : max(3, getattr(vae, "input_channels", getattr(vae, "output_channels", 3)))]


def memory_bytes(gib: float) -> int | None:
    """Bytes of a memory input; None where it is 0, automatic."""
    return None if gib == 0 else int(gib * GIB)


def with_report(vae: Any, result: Any) -> dict[str, Any]:
    """A node's result with what the VAE tells of its last run, for the node to show."""
    report = getattr(vae, "last_report", None)
    return {"ui": {"exact_vae": [] if report is None else [report.as_dict()]}, "result": (result,)}
