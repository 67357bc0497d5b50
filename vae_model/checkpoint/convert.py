"""Converting a VAE file to another layout: loaded strictly, written, and read back for comparison."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..bundled import files_named
from ..errors import InputError, VAEFileError
from ..families.layout import is_counter
from ..families.table import FAMILIES
from ..files.atomic import atomic_path, require_writable
from ..files.dtypes import parse_dtype
from .load import LoadedModel, load_model
from .save import layout_named, layouts_of, save

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_KEPT = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast", "sample_size")
"""Fields that no weight tells: kept where the source had them."""


def convert_vae(
    paths: Sequence[str],
    output: Path,
    layout: str,
    dtype: str | None = None,
    latent_format: str | None = None,
    variant: str | None = None,
    part: str | None = None,
) -> tuple[list[Path], list[str]]:
    """Write the VAE of `paths` (a file, or its two halves) in another layout.

    Args:    output: a .safetensors file; for diffusers also a folder, which then gets a config.json, too.
             layout: as in the file's family; or a second name that it has.
             dtype: of the written weights; None keeps them as they are.
             latent_format: whose latents, as `load_vae` takes it; it is written down.
             variant, part: of what is read, as for `load_vae`.
    Returns: (what was written, notes).
    Raises:  VAEFileError for what is no VAE, InputError for a layout or folder it cannot be written as.
    """
    kind = None if dtype is None else parse_dtype(dtype)
    sources = files_named(paths)
    is_folder = not output.suffix or output.is_dir()
    target = output / WEIGHTS_NAME if is_folder else output
    if any(_would_replace(Path(source), target) for source in sources):
        raise InputError(f"-o: expected another file than the input, got {target}: name a new one")
    loaded = load_model(sources, latent_format=latent_format, variant=variant, part=part)
    rows, name = layouts_of(loaded.model), layout_named(loaded.model, layout)
    if is_folder and not (name in rows and name.endswith("diffusers")):
        raise InputError(f"-o: expected a name ending in .safetensors for {layout}, got {output}: add the ending")
    fields = fields_of_folder(loaded) if is_folder else None
    require_writable(target)
    save(loaded.model, target, layout=name, dtype=kind)
    written = [target]
    if fields is not None:
        written.append(output / "config.json")
        with atomic_path(written[-1]) as temporary:
            temporary.write_text(json.dumps(dict(sorted(fields.items())), indent=2) + "\n", encoding="utf-8")
    _compare(loaded, target, kind, rows[name].left_out)
    return written, _notes(loaded, rows[name].left_out, fields)


def _would_replace(source: Path, target: Path) -> bool:
    """Whether the output is the input, or a file in its folder."""
    if not (source.exists() and target.exists()):
        return False
    folders = (source, source / "vae") if source.is_dir() else ()
    return source.samefile(target) or any(f.is_dir() and f.samefile(target.parent) for f in folders)


def fields_of_folder(loaded: LoadedModel) -> dict[str, Any]:
    """The config.json that diffusers wants beside the weights."""
    fields = FAMILIES[loaded.family].diffusers_config(loaded.config, loaded.hints)
    return fields | {name: _value(loaded.hints[name]) for name in _KEPT if name in loaded.hints}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _compare(loaded: LoadedModel, target: Path, dtype: torch.dtype | None, left_out: str) -> None:
    """VAEFileError unless every tensor comes back from the file as it is in memory."""
    again = load_model(target).model.state_dict()
    for key, tensor in loaded.model.state_dict().items():
        if left_out and key.startswith(left_out):
            continue
        wanted = tensor if dtype is None or is_counter(key) else tensor.to(dtype)
        same = key in again and again[key].dtype == wanted.dtype and torch.equal(_bits(again[key]), _bits(wanted))
        if not same:
            raise VAEFileError(f"{target}: expected {key} as it was written, found another: check the disk")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Bytes, in which NaN equals itself."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _notes(loaded: LoadedModel, left_out: str, fields: dict[str, Any] | None) -> list[str]:
    notes: list[str] = []
    if left_out and hasattr(loaded.model, left_out):
        notes.append(f"the {left_out} was left out: this layout holds the other half")
    if not FAMILIES[loaded.family].knows_raw(loaded.config, loaded.hints):
        notes.append("written without scale and shift, which the source does not tell: say --latent-format")
    if fields is not None:
        notes += FAMILIES[loaded.family].notes_on_folder(fields)
    return notes
