"""What a VAE file is, in words and numbers, from its header alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from ..vae_model.bundled import BUNDLED_FILE
from ..vae_model.bytesize import format_bytes
from ..vae_model.estimate import untiled_elements_per_pixel
from ..vae_model.families import FAMILIES
from ..vae_model.load import build_empty, inspect_model
from .loader import BUNDLED


def describe_vae(paths: Sequence[str]) -> dict[str, object]:
    """Facts of one VAE (one file or its two halves), in reading order; VAEFileError where it is none."""
    sources = [str(BUNDLED_FILE) if path == BUNDLED else path for path in paths]
    parts, family, config, _hints = inspect_model(sources)
    build_empty(parts, family, config)
    shapes = {key: shape for part in parts for key, shape in part.shapes.items()}
    dtypes = {part.weights.dtypes[key] for part in parts for key in part.keys.values()}
    halves = [half for half in ("encoder", "decoder") if any(key.startswith(f"{half}.") for key in shapes)]
    facts: dict[str, object] = {
        "file": " + ".join(part.weights.name for part in parts),
        "family": FAMILIES[family].title,
        "layout": " + ".join(part.layout.name for part in parts),
        "prefix": parts[0].prefix or "none",
        "halves": " and ".join(halves),
        "latent channels": config.latent_channels,
        "pixels per latent cell": config.factor,
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "stored as": ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)),
    }
    for half, direction in (("decoder", "decode"), ("encoder", "encode")):
        if half in halves:
            peak = untiled_elements_per_pixel(config, direction) * 1024**2 * 2
            facts[f"untiled {direction}, 1024 x 1024, 16-bit"] = f"{format_bytes(peak)} of activations"
    facts["not told by the weights"] = "scale and shift of the latent; latents here are raw, as in ComfyUI"
    facts["configuration"] = asdict(config)
    return facts
