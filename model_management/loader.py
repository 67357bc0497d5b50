"""load_vae: from a weight file to a VAE on this machine's device, in the dtype that suits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..vae_model.bundled import BUNDLED_FILE
from ..vae_model.errors import VAEFileError
from ..vae_model.host import Host
from ..vae_model.load import Source, load_model
from ..vae_model.vae import VAE
from . import comfy_host
from .devices import output_device, parse_device, parse_dtype, vae_device, vae_dtype
from .host import LocalHost
from .hosted_vae import HostedVAE

BUNDLED = "bundled"


def load_vae(
    path_or_paths: Source | Sequence[Source] = BUNDLED,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    config: Mapping[str, Any] | None = None,
    host: Host | None = None,
) -> VAE:
    """Load an autoencoder, whatever layout its file has.

    Args:    path_or_paths: a weight file, a diffusers folder, a state dict, a sequence of encoder and decoder file, or
             "bundled" for the small VAE that ships with the project.
             dtype: of weights and activations, a torch dtype or its name; "auto" is bfloat16 where the device is
             fast at it, else float32.
             device: "auto", a torch device or its name.
             config: fields of a diffusers config.json for what no tensor shape tells (`norm_num_groups`).
             host: the surroundings; None is this process, by ComfyUI's rules inside ComfyUI.
    Raises:  VAEFileError, one line, for anything that is no autoencoder; ValueError for a dtype or device not here.
    """
    inside = comfy_host.is_comfyui() and host is None
    target = _auto_device(inside) if device == "auto" else parse_device(device)
    kind = _auto_dtype(inside, target) if dtype == "auto" else parse_dtype(dtype)
    if path_or_paths == BUNDLED:
        if not BUNDLED_FILE.is_file():
            raise VAEFileError(f"{BUNDLED_FILE.name}: expected the bundled VAE, found none: install the project again")
        path_or_paths = BUNDLED_FILE
    loaded = load_model(path_or_paths, dtype=kind, config=config)
    if not inside:
        return VAE(loaded, host or LocalHost(), device=target, dtype=kind, output_device=output_device())
    vae = HostedVAE(loaded, device=target, dtype=kind)
    if not isinstance(path_or_paths, Mapping):  # a state dict would stay in memory for this
        # By this the host makes another copy of the model, for another device.
        vae.patcher.cached_patcher_init = (_load_patcher, (path_or_paths, kind, target, config))
    return vae


def _load_patcher(source: Any, dtype: torch.dtype, device: torch.device, config: Mapping[str, Any] | None) -> Any:
    """The patcher of the same model loaded once more."""
    return load_vae(source, dtype=dtype, device=device, config=config).patcher


def _auto_device(inside_comfyui: bool) -> torch.device:
    return comfy_host.vae_device() if inside_comfyui else vae_device()


def _auto_dtype(inside_comfyui: bool, device: torch.device) -> torch.dtype:
    return comfy_host.vae_dtype(device) if inside_comfyui else vae_dtype(device)
