"""What `--vae` and the words for VAE files name: one file or folder, or the two files of its halves."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..vae_model.bundled import BUNDLED
from ..vae_model.errors import InputError, VAEFileError

if TYPE_CHECKING:
    import torch

    from ..vae_model.vae import VAE

_JOINTS = (",", "+")


def chosen_vae(options: argparse.Namespace, device: torch.device | None = None) -> VAE:
    """The VAE that the options of encode, decode or sample name, on `device` or where they say."""
    from ..model_management.loader import load_vae

    files = vae_files(options.vae)
    return load_vae(
        files if len(files) > 1 else files[0],
        dtype=options.dtype,
        device=device or options.device,
        latent_format=options.latent_format,
        variant=options.variant,
        part=options.part,
    )


def vae_files(given: Sequence[str] | None) -> list[str]:
    """The files of one VAE, "bundled" where none is given. "a,b" and "a+b" are two, if that is no file's own name."""
    files: list[str] = []
    for text in given or [BUNDLED]:
        files += next((parts for joint in _JOINTS if (parts := _split(text, joint))), [text])
    return files


def _split(text: str, joint: str) -> list[str]:
    """The two files of "a,b"; nothing where it is one file, or no part of it is one."""
    parts = [part.strip() for part in text.split(joint)]
    is_two = len(parts) == 2 and all(parts) and not Path(text).exists()
    return parts if is_two and any(Path(part).exists() for part in parts) else []


def require_no_half(inputs: Sequence[Path], files: Sequence[str], command: str) -> None:
    """InputError where half a VAE lies among what is to be encoded or decoded: `--vae a b` takes b for an input."""
    from .inputs import WEIGHTS, is_latent

    for path in inputs:
        if path.suffix.lower() in WEIGHTS and not is_latent(path) and _is_half(path):
            wanted = "a picture" if command == "encode" else "a latent"
            raise InputError(
                f"{command}: expected {wanted}, got {path}, half of a VAE: name both halves, "
                f"as in --vae {files[-1]} --vae {path}"
            )


def _is_half(path: Path) -> bool:
    from ..vae_model.checkpoint.detect import detect
    from ..vae_model.files.weights import open_weights

    try:
        found = detect(open_weights(path)).keys
    except VAEFileError:
        return False
    return len({key.partition(".")[0] for key in found} & {"encoder", "decoder"}) == 1


def other_half(files: Sequence[str] | None, words: Sequence[str]) -> str:
    """What to add about words that belong to no option, where they could be meant as another file of the VAE."""
    from .inputs import WEIGHTS

    if not files or not words or words[0].startswith("-") or Path(words[0]).suffix.lower() not in WEIGHTS:
        return ""
    return f"; the two halves of a VAE are --vae {files[-1]} --vae {words[0]}"
