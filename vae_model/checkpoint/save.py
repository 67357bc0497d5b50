"""From a model to a weight file, in any layout that its family has; the inverse of `load`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..errors import InputError, VAEFileError
from ..errors.listed import on_one_line, some
from ..errors.wording import speaks_plainly
from ..families.family import Config
from ..families.layout import SCALARS, is_counter
from ..families.settings import known_settings
from ..families.table import FAMILIES, family_of
from ..files.atomic import atomic_path, require_writable
from ..files.dtypes import parse_dtype
from .difference import differences
from .given import autoencoder_in, is_of_diffusers, with_average
from .keys import layout_named, layouts_of, to_layout
from .load import build_empty, inspect_model, load_model

logger = logging.getLogger(__name__)

_say_once = cache(logger.warning)
"""A training saves its model many times."""
_REMEDY = "nothing was written; build it from arguments that a file can hold, or keep its state_dict"


@speaks_plainly("save")
def save(
    vae: Any,
    path: str | os.PathLike[str],
    *,
    layout: str | None = None,
    dtype: torch.dtype | str | None = None,
    header: Mapping[str, str] | None = None,
) -> None:
    """Write a VAE, its bare model or a training's module as safetensors; the file appears whole or not at all.

    Also a bare Encoder or Decoder, as half a VAE, and diffusers' models of the families known here. Of a model with a
    moving average the averaged weights are written.

    What no shape tells goes into the file's header. Before the file takes its name it is looked at as `load_model`
    would; a model that would come back as another one is refused.

    Args:    path: ends in .safetensors.
             layout: a name in `layouts_of(model)`; None is the first.
             dtype: of the written weights, a torch dtype or its name; None keeps them as they are.
             header: further fields of the file's header.
    Raises:  InputError, in one line and without a file, for what this layout, or any file, cannot hold.
    """
    model: Any = autoencoder_in(vae, "save")
    target, kind, fields = _target(path), _float_dtype(dtype), _text_header(header)
    if is_of_diffusers(model):
        model = load_model(model.state_dict(), config=known_settings(model.config)).model
    with with_average(model) as (whole, *_):
        _write(whole, target, layout, kind, fields)


def _target(path: Any) -> Path:
    """Where the file goes; InputError for what is no such name, or lies in no folder."""
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        found = "nothing" if path is None else type(path).__name__
        raise InputError(f"save: expected a path after the VAE, got {found}: name a .safetensors file")
    target = Path(path)  # pyright: ignore[reportUnknownArgumentType]
    if target.suffix.lower() not in (".safetensors", ".sft"):
        way = "change the ending"
        if not target.suffix:
            way = "add it, and exact-vae convert FILE --layout diffusers -o FOLDER makes a diffusers folder of the file"
        raise InputError(f"save: expected a name ending in .safetensors, got {target.name!r}: {way}")
    if not target.resolve().parent.is_dir():
        raise InputError(f"save: expected a folder that is there, got {target.parent}: make it first")
    try:
        require_writable(target)
    except ValueError as error:
        raise InputError(str(error).replace("output: ", "save: ", 1)) from error
    return target


def _text_header(header: Any) -> Mapping[str, str]:
    """Fields of a header; InputError for what safetensors' headers cannot hold."""
    fields: Any = {} if header is None else header
    if isinstance(fields, Mapping) and all(isinstance(part, str) for pair in fields.items() for part in pair):  # pyright: ignore
        return fields  # pyright: ignore[reportUnknownVariableType]
    raise InputError(f"header: expected text by name, got {on_one_line(repr(header))}: pass a dictionary of text alone")


def _float_dtype(dtype: Any) -> torch.dtype | None:
    """None keeps what is there; InputError for what weights cannot be written in."""
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise InputError(f"dtype: expected one of floating point, got {dtype}: choose torch.float16 or another")
    return dtype if dtype is None or isinstance(dtype, torch.dtype) else parse_dtype(dtype)


def _write(
    model: nn.Module, target: Path, layout: str | None, dtype: torch.dtype | None, header: Mapping[str, str]
) -> None:
    chosen = layout_named(model, layout)
    tensors = to_layout(model, chosen)
    kept = {key for key in tensors if is_counter(key) or key in SCALARS}
    kinds = {key: t.dtype if dtype is None or key in kept else dtype for key, t in tensors.items()}
    written = {key: t.detach().to("cpu", kinds[key]).contiguous() for key, t in tensors.items()}
    with atomic_path(target) as temporary:
        save_file(written, temporary, metadata={"format": "pt", **header} | family_of(model).settings(model))
        _sort_metadata(temporary)
        for note in _require_same(model, temporary, chosen, target.name):
            _say_once(note)


def require_savable(model: nn.Module, name: str = "the model", layout: str | None = None) -> None:
    """InputError, before any work is put into it, for a model that `save` would refuse; `name` begins the line."""
    chosen = layout_named(model, layout)
    _require_same(model, to_layout(model, chosen), chosen, name, family_of(model).settings(model))


def _require_same(
    model: nn.Module,
    source: Path | Mapping[str, Any],
    layout: str,
    name: str,
    settings: Mapping[str, str] | None = None,
) -> list[str]:
    """What other programs would make of a file, or of a state dict with such a header, as a note.

    InputError where `model` would come back from it as another one, or where the programs that the layout belongs to
    would silently compute something else.
    """
    try:
        family, config, read = _read_as(source, settings)
    except VAEFileError as error:
        called = str(source) if isinstance(source, Path) else "the state dict"
        text = str(error).replace(called, name).rpartition(": ")[0]  # without the advice to take another file
        # Without its frames, which would keep the file open that is to be removed.
        raise InputError(f"{on_one_line(text, 600)}: {_REMEDY}") from error.with_traceback(None)
    row, kind = layouts_of(model)[layout], FAMILIES[family]
    left_out = ([row.left_out] if row.left_out else []) + [*kind.not_compared(model)]
    found = differences(model, read, without=tuple(left_out))
    if found:
        raise InputError(
            f"{name}: expected a model that its file tells, got one whose file would be read with "
            f"{some(found, 3, '; ')}: {_REMEDY}"
        )
    unread = kind.unread_settings(config)
    if unread and row.unread == "refused":
        raise InputError(
            f"layout {layout}: expected settings that its readers know, got {', '.join(unread)}: "
            f"save in the {kind.layouts[0].name} layout"
        )
    passed_over = [] if row.unread == "known" else unread + kind.passed_over(config)
    told = f"{', '.join(passed_over)}: this project reads it from the file, other programs pass over it"
    return [told] if passed_over else []


def _read_as(source: Path | Mapping[str, Any], settings: Mapping[str, str] | None) -> tuple[str, Config, nn.Module]:
    """Family, configuration and weightless model; the file is closed again."""
    parts, family, config, _ = inspect_model(source, settings)
    return family, config, build_empty(parts, family, config)


def _sort_metadata(path: Path) -> None:
    """Put the header's metadata in order, in place: safetensors writes it in a random one, and equal models should make
    equal files. Nothing else in the header moves."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))
