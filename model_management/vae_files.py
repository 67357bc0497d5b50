"""Which VAEs there are: the host's own list inside ComfyUI, tiny ones with both files there, the bundled one."""

from __future__ import annotations

from typing import NamedTuple

from ..vae_model.bundled import BUNDLED
from ..vae_model.errors import InputError
from ..vae_model.families.latent_formats import TINY_FORMATS
from .comfy_host import find_file, list_files


class Found(NamedTuple):
    """What `load_vae` takes."""

    source: str | tuple[str, str]
    latent_format: str | None = None


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
    encoder, decoder = (find_file("vae_approx", file) for file in _tiny_pairs()[name])
    return Found((encoder, decoder), TINY_FORMATS[name])


def _tiny_pairs() -> dict[str, tuple[str, str]]:
    """Encoder and decoder file of every tiny VAE that has both."""
    files = list_files("vae_approx")
    pairs: dict[str, tuple[str, str]] = {}
    for name in TINY_FORMATS:
        encoders, decoders = (
            [file for file in files if file.startswith(f"{name}_{half}coder.")] for half in ("en", "de")
        )
        if encoders and decoders:
            pairs[name] = encoders[0], decoders[0]
    return pairs
