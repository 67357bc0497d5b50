"""Which VAE files there are: the host's own list inside ComfyUI, and the bundled one everywhere."""

from __future__ import annotations

from ..vae_model.errors import InputError
from .comfy_host import find_file, list_files
from .loader import BUNDLED


def list_vaes() -> list[str]:
    """Names for a menu: the host's files in models/vae, then "bundled"."""
    return [*list_files("vae"), BUNDLED]


def find_vae(name: str) -> str:
    """The path of a listed name. InputError for any other, so that a workflow cannot reach outside the folders."""
    names = list_vaes()
    if name not in names:
        raise InputError(
            f"vae_name: expected one of {len(names)} listed VAEs, got {name!r}: put the file into models/vae"
        )
    return BUNDLED if name == BUNDLED else find_file("vae", name)
