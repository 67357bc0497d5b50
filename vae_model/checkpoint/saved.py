"""Whether a file of weights is read back as the model that it was written from, by us and by those whose layout it has.

Names, shapes and header decide, as for `load_model`; weights are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InputError, VAEFileError
from ..families.family import Config
from ..families.layout import Layout
from ..families.table import FAMILIES, family_of
from ..files.weights import on_one_line
from .difference import differences
from .load import build_empty, inspect_model

_REMEDY = "nothing was written; build it from arguments that a file can hold, or keep its state_dict"
_MOST = 3
"""Differences that an error names."""


def require_same(
    model: nn.Module,
    source: Path | Mapping[str, Any],
    layout: str,
    name: str,
    settings: Mapping[str, str] | None = None,
) -> list[str]:
    """Nothing where `source` is read as `model`, and what other programs would make of it.

    Args:    source: a file or a state dict. layout: of its names. name: how errors call it.
             settings: of a state dict, what a file's header would hold.
    Returns: notes, each in one line.
    Raises:  InputError where the model would come back as another one, or where the programs that the layout belongs to
             would silently compute something else.
    """
    try:
        family, config, read = _read_as(source, settings)
    except VAEFileError as error:
        called = str(source) if isinstance(source, Path) else "the state dict"
        text = str(error).replace(called, name).rpartition(": ")[0]  # without the advice to take another file
        # Without its frames, which would keep the file open that is to be removed.
        raise InputError(f"{on_one_line(text, 600)}: {_REMEDY}") from error.with_traceback(None)
    row, kind = _row(layout, model), FAMILIES[family]
    left_out = ([row.left_out] if row.left_out else []) + [*kind.not_compared(model)]
    found = differences(model, read, without=tuple(left_out))
    if found:
        more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
        raise InputError(
            f"{name}: expected a model that its file tells, got one whose file would be read with "
            f"{'; '.join(found[:_MOST])}{more}: {_REMEDY}"
        )
    unread = kind.unread_settings(config)
    if unread and row.unread == "refused":
        raise InputError(
            f"layout {layout}: expected settings that its readers know, got {', '.join(unread)}: "
            f"save in the {kind.layouts[0].name} layout"
        )
    if row.unread == "known":
        return []
    passed_over = unread + kind.passed_over(config)
    told = f"{', '.join(passed_over)}: this project reads it from the file, other programs pass over it"
    return [told] if passed_over else []


def _row(layout: str, model: nn.Module) -> Layout:
    """A layout of the model's family by its name."""
    return next(row for row in family_of(model).layouts if row.name == layout)


def _read_as(source: Path | Mapping[str, Any], settings: Mapping[str, str] | None) -> tuple[str, Config, nn.Module]:
    """Family, configuration and weightless model; the file is closed again."""
    parts, family, config, _ = inspect_model(source, settings)
    return family, config, build_empty(parts, family, config)
