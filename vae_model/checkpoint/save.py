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
from torch import Tensor, nn

from ..errors import InputError
from ..families.layout import COUNTERS, IGNORED, SCALARS, Layout
from ..families.table import family_of
from ..files.atomic import atomic_path
from ..files.dtypes import parse_dtype
from .averaged import with_average
from .given import autoencoder_in, is_of_diffusers
from .keys import count_levels, count_per_level, is_attention_weight, to_theirs
from .load import load_model
from .saved import require_same

logger = logging.getLogger(__name__)


def layouts_of(model: nn.Module) -> dict[str, Layout]:
    """The layouts that a model can be written in, by name; the usual one first."""
    return {row.name: row for row in family_of(model).layouts}


def default_layout(model: nn.Module) -> str:
    """The layout that a model is written in unless told otherwise."""
    return next(iter(layouts_of(model)))


def layout_named(model: nn.Module, layout: str | None) -> str:
    """The layout that is meant: None is the usual one; some have a second name."""
    if layout is None:
        return default_layout(model)
    rows = layouts_of(model)
    return next((row.name for row in rows.values() if row.alias and row.alias == layout), layout)


def to_layout(model: nn.Module, layout: str) -> dict[str, Tensor]:
    """The model's tensors under the names (and attention shapes) of that layout; InputError where there is none."""
    rows = layouts_of(model)
    if not isinstance(layout, str) or layout not in rows:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"layout: expected one of {', '.join(rows)}, got {layout!r}: choose one of these")
    row = rows[layout]
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(IGNORED)}
    levels, per_level = count_levels(state), count_per_level(state)
    named: dict[str, Tensor] = {}
    for key, tensor in state.items():
        theirs = to_theirs(key, row, levels, per_level)
        if theirs is None and row.left_out:
            continue  # such a layout holds one half only
        if theirs is None:
            first = next(iter(rows))
            way = "no layout has one; keep its state_dict" if layout == first else f"save in the {first} layout"
            raise InputError(f"layout {layout}: expected a place for {key}, found none: {way}")
        if row.linear_attention and is_attention_weight(key):
            tensor = tensor.flatten(1)  # (C, C)
        if row.without_frames and tensor.ndim == 5:
            tensor = tensor.squeeze(2)  # (out, in, k, k)
        named[theirs] = tensor
    return named | family_of(model).beside(model, layout, named)


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
    target, kind = _target(path), _float_dtype(dtype)
    if is_of_diffusers(model):
        _write(load_model(model.state_dict(), config=model.config).model, target, layout, kind, header)
        return
    with with_average(model) as (whole, _):
        _write(whole, target, layout, kind, header)


def _target(path: Any) -> Path:
    """Where the file goes; InputError for what is no such name, or lies in no folder."""
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        found = "nothing" if path is None else type(path).__name__
        raise InputError(f"save: expected a path after the VAE, got {found}: name a .safetensors file")
    target = Path(path)  # pyright: ignore[reportUnknownArgumentType]
    if target.suffix.lower() not in (".safetensors", ".sft"):
        raise InputError(f"save: expected a name ending in .safetensors, got {target.name!r}: change the ending")
    if not target.resolve().parent.is_dir():
        raise InputError(f"save: expected a folder that is there, got {target.parent}: make it first")
    return target


def _float_dtype(dtype: Any) -> torch.dtype | None:
    """None keeps what is there; InputError for what weights cannot be written in."""
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise InputError(f"dtype: expected one of floating point, got {dtype}: choose torch.float16 or another")
    return dtype if dtype is None or isinstance(dtype, torch.dtype) else parse_dtype(dtype)


def _write(
    model: nn.Module, target: Path, layout: str | None, dtype: torch.dtype | None, header: Mapping[str, str] | None
) -> None:
    chosen = layout_named(model, layout)
    tensors = to_layout(model, chosen)
    kept = (*COUNTERS, *SCALARS)
    kinds = {key: t.dtype if dtype is None or key in kept else dtype for key, t in tensors.items()}
    written = {key: t.detach().to("cpu", kinds[key]).contiguous() for key, t in tensors.items()}
    with atomic_path(target) as temporary:
        save_file(written, temporary, metadata={"format": "pt", **(header or {})} | family_of(model).settings(model))
        _sort_metadata(temporary)
        for note in require_same(model, temporary, chosen, target.name):
            _say_once(note)


def require_savable(model: nn.Module, name: str = "the model", layout: str | None = None) -> None:
    """InputError, before any work is put into it, for a model that `save` would refuse; `name` begins the line."""
    chosen = layout_named(model, layout)
    require_same(model, to_layout(model, chosen), chosen, name, family_of(model).settings(model))


@cache
def _say_once(note: str) -> None:
    """A training saves its model many times."""
    logger.warning(note)


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
