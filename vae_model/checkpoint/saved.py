"""Whether a file of weights is read back as the model that it was written from, by us and by those whose layout it has.

Names, shapes and header decide, as for `load_model`; weights are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InputError, VAEFileError
from ..families.config import Config
from ..families.ldm.config import KLConfig
from ..families.tiny.config import TinyConfig
from ..files.weights import on_one_line
from .difference import differences
from .load import build_empty, inspect_model

_OWN = ("ldm", "wan", "taesd-diffusers")
"""Layouts in which files of ours may hold more than others would read there: what they do not know is said."""
LEFT_OUT = {"taesd-encoder": "decoder", "taesd-decoder": "encoder"}
"""Layouts of one half, and the half that they leave out."""
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
    left_out = [LEFT_OUT[layout]] if layout in LEFT_OUT else []
    if family == "video" and not hasattr(model, "quant_conv"):
        left_out.append("quant_conv")  # diffusers' layout always has one, which then changes nothing
    found = differences(model, read, without=tuple(left_out))
    if found:
        more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
        raise InputError(
            f"{name}: expected a model that its file tells, got one whose file would be read with "
            f"{'; '.join(found[:_MOST])}{more}: {_REMEDY}"
        )
    unread = unread_settings(config)
    if unread and layout not in _OWN:
        raise InputError(
            f"layout {layout}: expected settings that its readers know, got {', '.join(unread)}: "
            f"save in the {'taesd-diffusers' if isinstance(config, TinyConfig) else 'ldm'} layout"
        )
    if layout == "taesd-diffusers":
        return []
    passed_over = unread + _groups_passed_over(config)
    told = f"{', '.join(passed_over)}: this project reads it from the file, other programs pass over it"
    return [told] if passed_over else []


def _read_as(source: Path | Mapping[str, Any], settings: Mapping[str, str] | None) -> tuple[str, Config, nn.Module]:
    """Family, configuration and weightless model; the file is closed again."""
    parts, family, config, _ = inspect_model(source, settings)
    return family, config, build_empty(parts, family, config)


def unread_settings(config: Config) -> list[str]:
    """Settings for which the layouts of others have no place, and without which a network computes something else."""
    if isinstance(config, TinyConfig):
        usual = TinyConfig()
        names = (
            ("act_fn", "upsample_fn", "upsampling_scaling_factor") if config.decoder_block_out_channels else ("act_fn",)
        )
        return [f"{name} {getattr(config, name)}" for name in names if getattr(config, name) != getattr(usual, name)]
    if not isinstance(config, KLConfig):
        return []
    halves = [half for half in (config.encoder, config.decoder) if half]
    found = [name for name in ("tanh_out", "give_pre_end") if getattr(config, name) and config.decoder]
    found += ["resamp_with_conv False"] * any(not half.resamp_with_conv for half in halves)
    found += ["conv_shortcut"] * any(half.conv_shortcut for half in halves)
    return found + ["norms of other groups in each half"] * any(half.num_groups is not None for half in halves)


def _groups_passed_over(config: Config) -> list[str]:
    """Norm groups that others, which take 32, would not notice."""
    if not isinstance(config, KLConfig) or config.num_groups == 32:
        return []
    widths = [width for half in (config.encoder, config.decoder) if half for width in (half.ch, *half.widths)]
    return [] if any(width % 32 for width in widths) else [f"norm_num_groups {config.num_groups}"]
