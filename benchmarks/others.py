"""diffusers and ComfyUI with our weights, each called the way its users call it."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from typing import Any, NoReturn

import torch
from case import CONFIG, Models
from exact_vae.vae_model.checkpoint.save import to_layout
from torch import Tensor

SAMPLE_SIZE = 512
"""As in the configuration of Stable Diffusion 1's autoencoder: diffusers' tiles have this side in pixels."""


def diffusers_model(models: Models, *, tiling: bool) -> Any:
    """AutoencoderKL on the very tensors of our model; `tiling` as `enable_tiling()` sets it."""
    from diffusers import AutoencoderKL

    widths = CONFIG.decoder.widths if CONFIG.decoder else ()
    with torch.device("meta"):
        theirs = AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=2,
            latent_channels=CONFIG.latent_channels,
            norm_num_groups=CONFIG.num_groups,
            sample_size=SAMPLE_SIZE,
        )
    theirs.load_state_dict(to_layout(models.ours, "diffusers"), strict=True, assign=True)
    if tiling:
        theirs.enable_tiling()
    return theirs.eval().requires_grad_(False)


def run_diffusers(model: Any, direction: str, x: Tensor) -> Tensor:
    """Raw image, or mean of the posterior."""
    return model.decode(x).sample if direction == "decode" else model.encode(x).latent_dist.mode()


def comfyui_folder() -> str:
    """The checkout named by COMFYUI_DIR, '' for none."""
    return os.environ.get("COMFYUI_DIR", "")


def import_comfyui(device: torch.device) -> Any:
    """ComfyUI's module `comfy.sd`; its checkout joins the import path here and nowhere else."""
    folder = comfyui_folder()
    if folder not in sys.path:
        # Behind this folder: a checkout has modules of the commonest names at its root.
        sys.path.insert(1, folder)
    importlib.import_module("comfy.cli_args").args.cpu = device.type == "cpu"
    return importlib.import_module("comfy.sd")


def comfyui_nodes() -> Any:
    """ComfyUI's module of the core's nodes, behind `import_comfyui`."""
    return importlib.import_module("nodes")


def comfyui_vae(models: Models) -> Any:
    """comfy.sd.VAE with our weights, its result raw instead of clamped to 0..1, so that errors can be compared."""
    sd = importlib.import_module("comfy.sd")
    state = {key: tensor.clone() for key, tensor in models.ours.state_dict().items()}
    vae = sd.VAE(sd=state, device=models.device, dtype=models.dtype)
    vae.process_input = vae.process_output = _unchanged
    return vae


def without_fallback(vae: Any) -> Any:
    """A copy that fails when memory runs out; the original would go on with tiles and the row would lie."""

    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise MemoryError("out of memory")

    vae = copy.copy(vae)
    vae.decode_tiled_ = vae.encode_tiled_ = refuse
    return vae


def run_comfyui(vae: Any, direction: str, x: Tensor, *, tiled: bool) -> Tensor:
    """VAEDecode and VAEEncode, or VAEDecodeTiled and VAEEncodeTiled with their defaults, as those nodes call."""
    tile, overlap = 512, 64
    if direction == "decode":
        f = vae.spacial_compression_decode()
        sides = {"tile_x": tile // f, "tile_y": tile // f, "overlap": overlap // f}
        image = vae.decode_tiled(x, **sides) if tiled else vae.decode(x)
        return image.movedim(-1, 1)
    pixels = x.movedim(1, -1)
    return vae.encode_tiled(pixels, tile_x=tile, tile_y=tile, overlap=overlap) if tiled else vae.encode(pixels)


def _unchanged(image: Tensor) -> Tensor:
    return image
