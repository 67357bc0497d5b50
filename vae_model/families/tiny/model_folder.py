"""The local folder of one model as diffusers writes it: where it is, and its config.json.

What diffusers' classes take to send models elsewhere is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ...errors import InputError, VAEFileError

CONFIG_NAME = "config.json"


def folder_of(folder: str | os.PathLike[str], subfolder: str | None) -> Path:
    """The local folder; VAEFileError where there is none."""
    require_name("subfolder", subfolder)
    place = _path(folder) / (subfolder or "")
    if place.is_dir():
        return place
    if place.is_file():
        raise VAEFileError(f"{place}: expected a folder, got a file: open it by load_vae")
    raise VAEFileError(
        f"{place}: expected a local folder, found none there: download the model and name its folder, "
        "for nothing is fetched"
    )


def new_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder to write into, whether it is there or not; InputError for what names none."""
    return _path(folder)


def require_name(what: str, name: Any) -> None:
    """InputError for a name that is no text."""
    if not (name is None or isinstance(name, str)):
        raise InputError(f"{what}: expected a name, got {name!r}: pass text, or leave it out")


def _path(folder: Any) -> Path:
    if not isinstance(folder, (str, os.PathLike)) or isinstance(os.fspath(folder), bytes) or not os.fspath(folder):
        found = "nothing" if folder is None or folder == "" else type(folder).__name__  # pyright: ignore
        raise InputError(f"folder: expected the path of a local folder, got {found}: name one")
    return Path(folder)  # pyright: ignore[reportUnknownArgumentType]


def read_config(place: Path) -> dict[str, Any]:
    """The fields of its config.json; VAEFileError where it is missing or holds something else."""
    path = place / CONFIG_NAME
    if not path.is_file():
        inner = [name for name in ("vae", "model") if (place / name / CONFIG_NAME).is_file()]
        remedy = f'say subfolder="{inner[0]}"' if inner else "name the folder that it is in, or let load_vae read it"
        raise VAEFileError(f"{place}: expected a {CONFIG_NAME}, found none: {remedy}")
    try:
        fields: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VAEFileError(f"{path}: expected JSON, found something else: write it again") from error
    if not isinstance(fields, dict):
        raise VAEFileError(f"{path}: expected an object of fields, found something else: write it again")
    return fields  # pyright: ignore[reportUnknownVariableType]


def push_to_hub(*_model_and_names: Any, **_options: Any) -> NoReturn:
    """InputError: nothing is sent from here."""
    raise InputError(
        "push_to_hub: expected a local folder, got a repository: write one by save_pretrained(folder), "
        "then upload it by huggingface_hub's upload_folder"
    )


def require_local(options: Mapping[str, Any]) -> None:
    """InputError for options of `save_pretrained` that ask for sending, or that it does not know."""
    if options.get("push_to_hub"):
        push_to_hub()
    unknown = sorted(options.keys() - {"push_to_hub"})
    if unknown:
        raise InputError(f"save_pretrained: expected names of its arguments, got {', '.join(unknown)}: leave them out")
