"""Folders as diffusers writes them: which of the files in it are the weights of one autoencoder.

A folder may hold several variants (`fp16`, `bf16`, `non_ema`), each as safetensors or as a pickle, each in one file or
in shards with an index; a pipeline's root has the autoencoder in a folder of its own. Source of the names: diffusers'
`save_pretrained` (Apache-2.0), read as facts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import VAEFileError
from ..errors.listed import some
from .kinds import SUFFIXES

_STEM = "diffusion_pytorch_model"
_NAME = re.compile(rf"{_STEM}(?:\.([\w-]+?))??(?:-(\d{{5}})-of-(\d{{5}}))?(?:\.([\w-]+))?\.(safetensors|bin)", re.ASCII)
_INDEX = re.compile(rf"{_STEM}(?:\.([\w-]+))?\.(safetensors|bin)\.index(?:\.([\w-]+))?\.json", re.ASCII)
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\..+)", re.ASCII)
_SUBFOLDERS = ("vae", "vqvae", "movq")
"""Where pipelines keep their autoencoder, in the order of preference."""
_MOST_SHARDS = 1000
_UNREADABLE = {".msgpack": "Flax's", ".onnx": "ONNX's", ".gguf": "GGUF's", ".xml": "OpenVINO's", ".h5": "Keras's"}
Choice = tuple[tuple[Path, ...], tuple[str, ...]]
"""The files that together are one state dict, and what there is to say about the choice."""


def choose_in_folder(folder: Path, variant: str | None) -> Choice:
    """The weights in a folder.

    Args:    variant: its name; None takes the plain files, else the only variant there is.
    Raises:  VAEFileError naming what is there, where nothing or no single thing can be chosen.
    """
    folder, notes = _enter(folder)
    groups = _groups(folder)
    if not groups:
        return (_only_file(folder),), notes
    found = sorted({name for name, _ in groups if name})
    if variant is None and not any(name == "" for name, _ in groups):
        if len(found) > 1:
            raise VAEFileError(
                f"{folder}: expected weights without a variant, found {', '.join(found)}: choose one by variant "
                f"(--variant {found[0]} on the command line), or give its file"
            )
        variant = found[0]
        notes = (*notes, f"taken is the variant {variant}, the only one in {folder}")
    wanted = variant or ""
    for ending in ("safetensors", "bin"):
        if (wanted, ending) in groups:
            return _complete(folder, groups[wanted, ending]), notes
    there, way = (", ".join(found), "choose one of these, or none") if found else ("no variant", "leave it out")
    raise VAEFileError(f"{folder}: expected the variant {wanted}, found {there}: {way}")


def loose_weights(folder: Path) -> list[Path]:
    """The weight files of a folder that diffusers did not write; none of another one."""
    folder, _ = _enter(folder)
    return [] if _groups(folder) else _weight_files(folder)


def choose_beside(path: Path) -> Choice:
    """The files of which this is one shard, or those that this index lists; else the file alone."""
    if path.name.endswith(".json") and ".index" in path.name:
        return _complete(path.parent, _listed(path)), ()
    if path.name in ("config.json", "model_index.json"):
        return choose_in_folder(path.parent, None)
    files = _complete(path.parent, _siblings(path.name))
    notes = (f"{path.name} is one of {len(files)} files, all of them were read",) if len(files) > 1 else ()
    return files, notes


def _enter(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder that holds the weights themselves: below a pipeline's root or in the newest snapshot of a cache."""
    snapshots = folder / "snapshots"
    if snapshots.is_dir():
        main = folder / "refs" / "main"
        newest = snapshots / main.read_text(encoding="utf-8").strip() if main.is_file() else snapshots
        kept = [newest] if newest != snapshots and newest.is_dir() else sorted(snapshots.iterdir())
        if len(kept) == 1:
            folder = kept[0]
    if _groups(folder):
        return folder, ()
    inner = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and _holds_autoencoder(entry)]
    preferred = [entry for name in _SUBFOLDERS for entry in inner if entry.name == name][:1] or inner
    if len(preferred) > 1:
        raise VAEFileError(
            f"{folder}: expected one folder with an autoencoder, found {', '.join(e.name for e in preferred)}: "
            "give one of them"
        )
    if not preferred or (not (folder / "model_index.json").is_file() and _weight_files(folder)):
        return folder, ()
    return preferred[0], (f"taken is the folder {preferred[0].name} of {folder}",)


def _holds_autoencoder(folder: Path) -> bool:
    if not (_groups(folder) or _weight_files(folder)):
        return False
    try:
        kind = str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name", ""))
    except (OSError, ValueError, RecursionError, AttributeError):  # the last where it holds something else than fields
        kind = ""
    return folder.name in _SUBFOLDERS or "Autoencoder" in kind or kind == "VQModel"


def _groups(folder: Path) -> dict[tuple[str, str], list[str]]:
    """(variant or "", ending) -> the names of its files. What an index lists counts before what names suggest."""
    groups: dict[tuple[str, str], list[str]] = {}
    names = sorted(entry.name for entry in folder.iterdir() if not entry.is_dir())
    for name in names:
        match = _INDEX.fullmatch(name)
        if match is not None:
            groups[match[1] or match[3] or "", match[2]] = _listed(folder / name)
    listed = {name for group in groups.values() for name in group}
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None or name in listed:
            continue
        key = (match[1] or match[4] or "", match[5])
        if match[2] is None or key not in groups:
            groups[key] = _siblings(name)
    return groups


def _siblings(name: str) -> list[str]:
    """The names of all shards to which the one of this name belongs; itself alone, where it is no shard."""
    match = _SHARD.fullmatch(name)
    if match is None or not 0 < int(match[2]) <= int(match[3]) <= _MOST_SHARDS:
        return [name]
    return [f"{match[1]}-{number:05d}-of-{match[3]}{match[4]}" for number in range(1, int(match[3]) + 1)]


def _listed(index: Path) -> list[str]:
    """The names of the files that an index lists; they lie beside it."""
    try:
        content: Any = json.loads(index.read_text(encoding="utf-8"))
        names = sorted({str(name) for name in content["weight_map"].values()})
    except (OSError, ValueError, RecursionError) as error:
        raise VAEFileError(f"{index}: expected an index in JSON, found something else: download it again") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise VAEFileError(
            f"{index}: expected an index with a weight_map, found none: get another version of it, or give the weights"
        ) from error
    odd = [name for name in names if Path(name).name != name or "\\" in name]
    if not names or odd or len(names) > _MOST_SHARDS:
        found = ascii(odd[0])[1:-1][:80] if odd else f"{len(names)} names"
        raise VAEFileError(f"{index}: expected names of files beside it, found {found}: correct its weight_map")
    return names


def _complete(folder: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """The files of those names; VAEFileError naming those that are not there."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise VAEFileError(
            f"{folder}: expected all of {len(names)} files, missing {some(missing, 1)}: put them into the folder"
        )
    return tuple(folder / name for name in names)


def _weight_files(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.suffix.lower() in SUFFIXES and entry.is_file()]


def _only_file(folder: Path) -> Path:
    """The one weight file of a folder that diffusers did not write."""
    files = _weight_files(folder)
    if len(files) == 1:
        return files[0]
    if files:
        listed = ", ".join(file.name for file in files[:6]) + (", ..." if len(files) > 6 else "")
        raise VAEFileError(f"{folder}: expected a folder with one VAE, found {listed}: give one of these files")
    others = {_UNREADABLE[entry.suffix] for entry in folder.iterdir() if entry.suffix in _UNREADABLE}
    found = f"{' and '.join(sorted(others))} only" if others else "none"
    raise VAEFileError(
        f"{folder}: expected a folder with weights such as {_STEM}.safetensors, found {found}: "
        "give the folder or file that holds them"
    )
