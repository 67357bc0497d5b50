"""load_vae: from a weight file to a VAE on this machine's device, in the dtype that suits it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..vae_model.bundled import BUNDLED, BUNDLED_FILE
from ..vae_model.checkpoint.given import load_module
from ..vae_model.checkpoint.load import Source, load_model
from ..vae_model.errors import InputError, VAEFileError
from ..vae_model.errors.wording import speaks_plainly
from ..vae_model.families.table import FAMILIES
from ..vae_model.host import Host
from ..vae_model.vae import VAE
from . import comfy_host, devices
from .comfy_host import HostedVAE
from .devices import output_device, parse_device, parse_dtype
from .host import LocalHost

__all__ = ["BUNDLED", "load_vae"]

logger = logging.getLogger(__name__)

_BEST_FIRST = [torch.bfloat16, torch.float32]
"""Dtypes that VAEs of the KL family bear."""


@speaks_plainly("load_vae")
def load_vae(
    path_or_paths: Source | nn.Module | Sequence[Source] = BUNDLED,
    *misplaced: Any,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    config: Mapping[str, Any] | None = None,
    host: Host | None = None,
    latent_format: str | None = None,
    variant: str | None = None,
    part: str | None = None,
    pack_flux2: bool = False,
) -> VAE:
    """Load an autoencoder, whatever layout its file has.

    Args:    path_or_paths: a weight file, a diffusers folder, a pipeline's root, a state dict, a sequence of encoder
             and decoder file, a folder of these two, or "bundled" for the small VAE that ships with the project. Also a
             model in memory, of ours, of diffusers or of a training: weights are shared where device and dtype stay;
             of one with a moving average the averaged ones are copied.
             dtype: of weights and activations, a torch dtype or its name; "auto" is bfloat16 where the device is
             fast at it, else float32. Results are float32, with float64 in that.
             device: "auto", a torch device or its name.
             config: fields of a diffusers config.json for what no tensor shape tells (`norm_num_groups`). A name that
             nobody reads is refused, with the one that was probably meant; diffusers' and ldm's fields for what shapes
             tell may be there. In a config.json beside a file unknown names are noted. Where nothing tells and the
             widths are of no published model, a warning says what was taken.
             host: the surroundings; None is this process, by ComfyUI's rules inside ComfyUI.
             latent_format: whose latents: sd, sdxl, sd3, flux, flux2 or raw. A tiny VAE needs it to convert to raw
             latents where neither its file nor its name tells it; where it is not known, a warning says so.
             variant: of a folder's files, such as "fp16"; None takes the plain ones, or the only one there is.
             part: of several autoencoders in a checkpoint, such as "ema": the name of its dictionary or its prefix.
             "ema" is also the moving average that a training keeps beside its weights; a note says where there is one.
             pack_flux2: whether a tiny VAE for Flux.2 (TAEF2) takes and gives the latents of Flux.2's own VAE, which
             have squares of 2 x 2 cells in their channels: (B, 128, h, w) of 16 pixels a cell instead of (B, 32, 2h,
             2w) of 8. Nothing else is changed by it.
    Raises:  VAEFileError, one line, for anything that is no autoencoder; InputError for a dtype or device not here.
    """
    if misplaced:
        raise InputError(
            f"load_vae: expected one source, all else by its name, got {misplaced[0]!r} behind it: say "
            f"{_meant(misplaced[0])}"
        )
    _require_sources(path_or_paths)
    _require_options(config, host, variant, part)
    inside = comfy_host.is_comfyui() and host is None
    surroundings: Any = comfy_host.management() if inside else devices  # which have these two names in common
    target = surroundings.vae_device() if device == "auto" else parse_device(device)
    kind = surroundings.vae_dtype(target, _BEST_FIRST) if dtype == "auto" else parse_dtype(dtype, also=("auto",))
    if isinstance(path_or_paths, str) and path_or_paths == BUNDLED:
        if not BUNDLED_FILE.is_file():
            raise VAEFileError(f"{BUNDLED_FILE.name}: expected the bundled VAE, found none: install the project again")
        path_or_paths = BUNDLED_FILE
    if isinstance(path_or_paths, nn.Module):
        loaded = load_module(path_or_paths, dtype=kind, config=config, latent_format=latent_format)
    else:
        loaded = load_model(
            path_or_paths, dtype=kind, config=config, latent_format=latent_format, variant=variant, part=part
        )
    family = FAMILIES[loaded.family]
    if pack_flux2:
        family.pack_latents(loaded.model, loaded.config)
    if not family.knows_raw(loaded.config, loaded.hints):
        logger.warning(family.not_raw(loaded.config))
    if not inside:
        return VAE(loaded, host or LocalHost(), device=target, dtype=kind, output_device=output_device())
    vae = HostedVAE(loaded, device=target, dtype=kind)
    if not isinstance(path_or_paths, (Mapping, nn.Module)):  # these would stay in memory for this
        # By this the host makes another copy of the model, for another device.
        again = {"config": config, "latent_format": latent_format, "variant": variant, "part": part}
        again |= {"dtype": kind, "device": target, "pack_flux2": pack_flux2}
        vae.patcher.cached_patcher_init = (_load_patcher, (path_or_paths, again))
    return vae


def _load_patcher(source: Any, options: Mapping[str, Any], *, disable_dynamic: bool = False) -> Any:
    """The patcher of the same model loaded once more. `disable_dynamic`: the host's wish, which ours always fulfils."""
    return load_vae(source, **options).patcher


def _meant(given: Any) -> str:
    """The argument that something behind the source is probably for."""
    if isinstance(getattr(torch, str(given).removeprefix("torch."), None), torch.dtype):
        return f"dtype={given!r}"
    try:
        torch.device(given)
    except (RuntimeError, TypeError):
        return "load_vae([encoder, decoder]), if these are two halves"
    return f"device={given!r}"


def _require_options(config: Any, host: Any, variant: Any, part: Any) -> None:
    """InputError for options of another kind than they are meant to be."""
    if not (config is None or isinstance(config, Mapping)):
        raise InputError(f"config: expected fields of a config.json, got {type(config).__name__}: pass a dictionary")
    if not (host is None or hasattr(host, "make_plan")):
        raise InputError(f"host: expected a Host, got {type(host).__name__}: pass model_management.LocalHost() or none")
    for name, value in (("variant", variant), ("part", part)):
        if not (value is None or isinstance(value, str)):
            raise InputError(f"{name}: expected a name, got {value!r}: pass text, or leave it out")


def _require_sources(given: Any) -> None:
    """InputError for what is neither a path, a state dict, a module, nor some of these."""
    if isinstance(given, nn.Module):
        return
    if isinstance(given, VAE):
        raise InputError("load_vae: expected a file or a model, got a VAE: use it as it is, or give first_stage_model")
    kinds = (str, os.PathLike, Mapping)
    parts: list[Any] = [given] if isinstance(given, kinds) or not isinstance(given, (list, tuple)) else list(given)  # pyright: ignore
    odd = [part for part in parts if not isinstance(part, kinds)]
    if odd or not parts or "" in parts:
        found = "nothing" if not parts or not odd or odd[0] is None else type(odd[0]).__name__
        raise InputError(
            f"load_vae: expected a file, a folder, a state dict or a pair of them, got {found}: name a VAE file"
        )
    joined = given if isinstance(given, str) and not os.path.exists(given) else ""
    for joint in (mark for mark in (",", "+") if mark in joined):
        halves = joined.split(joint)
        if all(map(os.path.exists, halves)):
            names = ", ".join(repr(os.path.basename(half)) for half in halves)
            raise InputError(
                f"load_vae: expected one path or a pair of them, got {len(halves)} joined by {joint!r}: pass ({names})"
            )
