"""Latents in the file format of ComfyUI's SaveLatent and LoadLatent nodes: safetensors with one tensor and one marker.

`latent_tensor` holds the values, `latent_format_version_0` is an empty tensor that marks raw model latents. Files
without the marker are older: their values were multiplied by Stable Diffusion 1's scaling factor when they were saved.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors.listed import first_line
from .atomic import atomic_path, require_writable
from .kinds import MOST_HEADER_BYTES

TENSOR_KEY = "latent_tensor"
MARKER_KEY = "latent_format_version_0"
OLD_SCALE = 0.18215
OWN_KEY, OWN = "exact_vae.latents", "of the VAE alone"
"""In the header of a file whose latents are those of a VAE of unknown scale: not raw, and not scaled either."""
RATE_KEY = "exact_vae.frame_rate"
"""In the header of a file whose latents are of a clip: frames a second of what was encoded, such as 24000/1001."""


def read_latent(path: str | os.PathLike[str]) -> Tensor:
    """Raw model latents from a `.latent` file.

    Returns: (B, C, h, w), or (B, C, T, h, w) of clips, float32, on the CPU; a copy, so that the file may be replaced
             while it is in use.
    Raises:  ValueError, in one line, if the file is not such a file.
    """
    source = Path(path)
    if source.is_dir():
        raise ValueError(f"latent: expected a file, got the folder {source}: name the latents in it")
    if not source.is_file():
        raise ValueError(f"latent: expected a file, got {source}: no such file")
    try:
        file: Any  # safetensors describes its compiled reader only in part
        with safe_open(source, framework="pt", device="cpu") as file:
            keys: list[str] = sorted(file.keys())
            stored: Tensor | None = file.get_tensor(TENSOR_KEY).clone() if TENSOR_KEY in keys else None
    except (SafetensorError, OSError) as error:
        if not _is_safetensors(source):
            raise ValueError(
                f"latent: expected a file that encode or SaveLatent wrote, got another kind of file, {source}: "
                "name a latent"
            ) from error
        raise ValueError(
            f"latent: expected a complete safetensors file, got {source}: save it again with SaveLatent "
            f"({first_line(error)})"
        ) from error
    if stored is None:
        found = ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "") or "no keys"
        raise ValueError(f"latent: expected the key {TENSOR_KEY}, got {found} in {source}: is this a model file?")
    _check_latent(stored, str(source))
    z = stored.to(torch.float32)
    return z if MARKER_KEY in keys or not are_raw(source) else z / OLD_SCALE


def are_raw(path: str | os.PathLike[str]) -> bool:
    """False for a file that `write_latent` wrote as not raw: only the VAE that encoded it decodes it."""
    return latent_metadata(path).get(OWN_KEY) != OWN


def latent_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What stands in the header beside the tensors; nothing where there is none."""
    try:
        file: Any
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _is_safetensors(source: Path) -> bool:
    """Whether it is one, or was until it was cut off; an empty file may have been anything."""
    try:
        with source.open("rb") as file:
            head = file.read(9)
    except OSError:
        return True
    return head[8:] in (b"{", b"") and (len(head) < 8 or int.from_bytes(head[:8], "little") < MOST_HEADER_BYTES)


def require_latent_suffix(path: str | os.PathLike[str]) -> None:
    """ValueError, before any work, for a file name that does not end like a latent file."""
    if Path(path).suffix.lower() not in (".safetensors", ".latent"):
        raise ValueError(
            f"latent: expected a file name ending in .safetensors or .latent, got {str(path)!r}: change the ending"
        )


def write_latent(
    z: Tensor, path: str | os.PathLike[str], metadata: dict[str, str] | None = None, *, raw: bool = True
) -> None:
    """Save raw model latents so that ComfyUI's LoadLatent reads them back; the file is whole or not there at all.

    Args:    z: (B, C, h, w) or (B, C, T, h, w), any floating type; stored as float32.
             metadata: strings for the header, as ComfyUI keeps its workflow there.
             raw: False for latents of a VAE whose scale is not known; they get no marker, and `read_latent` gives
             them back as they are.
    """
    _check_latent(z, "the latent to write")
    require_writable(path)
    values = z.detach().to("cpu", torch.float32).contiguous()
    tensors = {TENSOR_KEY: values, **({MARKER_KEY: torch.empty(0)} if raw else {})}
    header = metadata if raw else {**(metadata or {}), OWN_KEY: OWN}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, header)


def _check_latent(z: Tensor, source: str) -> None:
    shape = tuple(z.shape)
    if z.ndim not in (4, 5) or z.numel() == 0:
        raise ValueError(
            f"latent: expected (B, C, h, w), or (B, C, T, h, w) of a clip, none of them 0, got {shape} in {source}: "
            "save it again"
        )
    if not z.is_floating_point():
        raise ValueError(f"latent: expected floating-point values, got {z.dtype} in {source}: convert them to float32")
