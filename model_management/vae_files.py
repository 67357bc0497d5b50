"""Which VAEs there are: the host's own list inside ComfyUI, tiny ones with both files there, the bundled one."""

from __future__ import annotations

from typing import NamedTuple

from ..vae_model.errors import InputError
from .comfy_host import find_file, list_files
from .loader import BUNDLED

TINY_SCALES = {
    "taesd": (0.18215, 0.0),
    "taesdxl": (0.13025, 0.0),
    "taesd3": (1.5305, 0.0609),
    "taef1": (0.3611, 0.1159),
    "taef2": (1.0, 0.0),
}
"""Scale and shift between the raw latents of a model and what its tiny autoencoder works on. Source: the latent formats
of the diffusion models, as ComfyUI and diffusers have them. No file of such a pair holds them."""


class Found(NamedTuple):
    """What `load_vae` takes."""

    source: str | tuple[str, str]
    config: dict[str, float] | None = None


def list_vaes() -> list[str]:
    """Names for a menu: the host's files in models/vae, complete pairs in models/vae_approx, then "bundled"."""
    return [*list_files("vae"), *_tiny_pairs(), BUNDLED]


def find_vae(name: str) -> Found:
    """A listed VAE. InputError for any other name, so that a workflow cannot reach outside the folders."""
    names = list_vaes()
    if name not in names:
        raise InputError(
            f"vae_name: expected one of {len(names)} listed VAEs, got {name!r}: put the file into models/vae"
        )
    if name in list_files("vae"):
        return Found(find_file("vae", name))
    if name == BUNDLED:
        return Found(BUNDLED)
    scale, shift = TINY_SCALES[name]
    encoder, decoder = (find_file("vae_approx", file) for file in _tiny_pairs()[name])
    return Found((encoder, decoder), {"vae_scale": scale, "vae_shift": shift})


def _tiny_pairs() -> dict[str, tuple[str, str]]:
    """Encoder and decoder file of every tiny VAE that has both."""
    files = list_files("vae_approx")
    pairs: dict[str, tuple[str, str]] = {}
    for name in TINY_SCALES:
        halves = [
            next((file for file in files if file.startswith(f"{name}_{half}.")), None)
            for half in ("encoder", "decoder")
        ]
        if halves[0] is not None and halves[1] is not None:
            pairs[name] = (halves[0], halves[1])
    return pairs
