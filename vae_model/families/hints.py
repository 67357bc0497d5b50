"""Hints: what a file's header, or the config.json beside it, tells of a model that no shape tells. Text by name.

A family's `settings` writes them. Of what the halves may have each for itself, a name with `encoder_` or `decoder_` in
front counts more than the bare one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Hints = Mapping[str, str]
Shapes = Mapping[str, tuple[int, ...]]

HALVES = ("encoder", "decoder")
PER_HALF = ("norm_num_groups", "dropout")
"""What the halves may have each for itself."""
SHARED = (
    *("act_fn", "upsample_fn", "upsampling_scaling_factor", "latent_magnitude", "latent_shift", "force_upcast"),
    *("vae_scale", "vae_shift", "latent_format", "batch_norm_eps", "merge_strategy"),
)
"""What two files of halves must agree about."""

UNKNOWN = "unknown"
"""As `latent_format` of a file whose maker did not know either: then its name says nothing."""

_Number = TypeVar("_Number", int, float)
_FLAGS = {"true": True, "false": False}


def number(hints: Hints, name: str, default: _Number, *, half: str | None = None) -> _Number:
    """A finite number of `default`'s kind; ValueError where the text is none. `half`: its own counts more."""
    text = _text(hints, name, half)
    if text is None:
        return default
    try:
        value = type(default)(text)
        finite = math.isfinite(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"expected a number as {name}, got {text!r}") from error
    if not finite:
        raise ValueError(f"expected a finite number as {name}, got {text!r}")
    return value


def flag(hints: Hints, name: str, default: bool = False) -> bool:
    """True or False, in any case; ValueError for another text."""
    text = _text(hints, name, None)
    if text is None:
        return default
    if text.lower() not in _FLAGS:
        raise ValueError(f"expected True or False as {name}, got {text!r}")
    return _FLAGS[text.lower()]


def word(hints: Hints, name: str, default: str) -> str:
    """A name."""
    return _text(hints, name, None) or default


def _text(hints: Hints, name: str, half: str | None) -> str | None:
    """The text of a setting; a null of config.json is none."""
    text = hints.get(f"{half}_{name}", hints.get(name)) if half else hints.get(name)
    return None if text in (None, "None") else text


def wrong_ones(infer: Callable[[Hints], object], hints: Hints) -> list[str]:
    """The settings that cannot be, each for itself; none where a configuration cannot be read without any, either."""

    def fails(told: Hints) -> bool:
        try:
            infer(told)
        except (KeyError, IndexError, ValueError, ZeroDivisionError):
            return True
        return False

    return [] if fails({}) else [name for name, text in hints.items() if fails({name: text})]


def join_halves(halves: Sequence[tuple[str, Hints]]) -> dict[str, str]:
    """The hints of two files that hold a half each, as of one file. ValueError where they contradict each other.

    Args:    halves: (encoder or decoder, what its file tells), the first file first.
    """
    joined: dict[str, str] = {}
    for _, told in halves:
        joined |= {name: value for name, value in told.items() if value != UNKNOWN or name not in joined}
    for name in (*PER_HALF, *SHARED):
        values = {half: told[name] for half, told in halves if told.get(name, UNKNOWN) != UNKNOWN}
        if len({*values.values()}) < 2:
            continue
        if name in SHARED:
            found = " and ".join(f"{value} ({half})" for half, value in values.items())
            raise ValueError(f"expected one {name} in both halves, got {found}")
        del joined[name]
        joined |= {f"{half}_{name}": value for half, value in values.items()}
    return joined


def consecutive(shapes: Shapes, template: str) -> int:
    """How many numbers, from 0, fill the {} of a key template."""
    number = 0
    while template.format(number) in shapes:
        number += 1
    return number
