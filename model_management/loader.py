"""load_vae: from a weight file to a VAE on this machine's device, in the dtype that suits it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..vae_model.bundled import BUNDLED_FILE
from ..vae_model.conventions import knows_raw, not_raw
from ..vae_model.errors import VAEFileError
from ..vae_model.host import Host
from ..vae_model.load import Source, load_model
from ..vae_model.vae import VAE
from . import comfy_host
from .devices import output_device, parse_device, parse_dtype, vae_device, vae_dtype
from .host import LocalHost

logger = logging.getLogger(__name__)

BUNDLED = "bundled"


def load_vae(
    path_or_paths: Source | Sequence[Source] = BUNDLED,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    config: Mapping[str, Any] | None = None,
    host: Host | None = None,
    latent_format: str | None = None,
) -> VAE:
    """Load an autoencoder, whatever layout its file has.

    Args:    path_or_paths: a weight file, a diffusers folder, a state dict, a sequence of encoder and decoder file, or
             "bundled" for the small VAE that ships with the project.
             dtype: of weights and activations, a torch dtype or its name; "auto" is bfloat16 where the device is
             fast at it, else float32.
             device: "auto", a torch device or its name.
             config: fields of a diffusers config.json for what no tensor shape tells (`norm_num_groups`).
             host: the surroundings; None is this process, by ComfyUI's rules inside ComfyUI.
             latent_format: whose latents: sd, sdxl, sd3, flux, flux2 or raw. A tiny VAE needs it to convert to raw
             latents where neither its file nor its name tells it; where it is not known, a warning says so.
    Raises:  VAEFileError, one line, for anything that is no autoencoder; ValueError for a dtype or device not here.
    """
    inside = comfy_host.is_comfyui() and host is None
    target = _auto_device(inside) if device == "auto" else parse_device(device)
    kind = _auto_dtype(inside, target) if dtype == "auto" else parse_dtype(dtype)
    if path_or_paths == BUNDLED:
        if not BUNDLED_FILE.is_file():
            raise VAEFileError(f"{BUNDLED_FILE.name}: expected the bundled VAE, found none: install the project again")
        path_or_paths = BUNDLED_FILE
    loaded = load_model(path_or_paths, dtype=kind, config=config, latent_format=latent_format)
    if not knows_raw(loaded.family, loaded.config, loaded.hints):
        logger.warning(not_raw(loaded.config))
    if not inside:
        return VAE(loaded, host or LocalHost(), device=target, dtype=kind, output_device=output_device())
    patcher = comfy_host.new_patcher(loaded.model, target)
    # Layers of ours are moved as a whole: the host casts and offloads only its own one by one.
    vae = VAE(
        loaded,
        comfy_host.ComfyHost(patcher, full_load=True),
        device=target,
        dtype=kind,
        output_device=comfy_host.intermediate_device(),
    )
    vae.patcher = patcher
    vae.not_video = False  # as the host's own VAEs take a batch
    return vae


def _auto_device(inside_comfyui: bool) -> torch.device:
    return comfy_host.vae_device() if inside_comfyui else vae_device()


def _auto_dtype(inside_comfyui: bool, device: torch.device) -> torch.dtype:
    return comfy_host.vae_dtype(device) if inside_comfyui else vae_dtype(device)
