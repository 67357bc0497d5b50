"""Translating keys between a file's layout and our modules, by the rules of its `Layout`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from itertools import chain

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..families.layout import IGNORED, Layout
from ..families.table import FAMILIES, family_of

PER_LEVEL = 4
"""Numbers that a level takes in a row over all levels unless a file says otherwise: three blocks and an upsample."""
_NUMBER = "0|[1-9][0-9]{0,3}"
"""Written in one way only: no leading zeros, no digits of other scripts."""
_PATTERNS = {
    "c": "encoder|decoder",
    "i": _NUMBER,
    "j": _NUMBER,
    "k": _NUMBER,
    "m": r"\w+",
    "p": "weight|bias",
    "rest": ".+",
}
THIRDS = ("[0/3]", "[1/3]", "[2/3]")
"""Ends of a name that mean one third of the tensor."""
_PLACEHOLDER = re.compile(r"\{(\w+)(~|\+1|:\w+)?\}")


@cache
def _compile(template: str) -> tuple[re.Pattern[str], list[tuple[str, str]]]:
    """A template as a regular expression with a group for each placeholder; of these, name and what follows on it."""
    first, *rest = _PLACEHOLDER.split(template)
    names, ways, texts = rest[::3], rest[1::3], rest[2::3]
    groups = (f"({_PATTERNS[name]}){re.escape(text)}" for name, text in zip(names, texts, strict=True))
    return re.compile(re.escape(first) + "".join(groups)), [(n, w or "") for n, w in zip(names, ways, strict=True)]


def _rewrite(key: str, source: str, target: str, levels: int, per_level: int) -> str | None:
    pattern, places = _compile(source)
    match = pattern.fullmatch(key)
    if match is None:
        return None
    values: dict[str, str] = {}
    for (name, how), text in zip(places, match.groups(), strict=True):
        if how == "~":
            text = str(levels - 1 - int(text))
        elif how == "+1":
            text = str(int(text) - 1)
        elif how:
            text, number = (str(part) for part in divmod(int(text), per_level))
            if (how == ":last") != (int(number) == per_level - 1):
                return None
            values[how[1:]] = number
        if text.startswith("-"):
            return None
        values[name] = text
    if ":j}" in target and int(values["j"]) >= per_level - 1:
        return None

    def fill(placeholder: re.Match[str]) -> str:
        text, how = values[placeholder[1]], placeholder[2] or ""
        if how.startswith(":"):
            return str(int(text) * per_level + (per_level - 1 if how == ":last" else int(values[how[1:]])))
        if how == "~":
            return str(levels - 1 - int(text))
        return str(int(text) + 1) if how == "+1" else text

    return _PLACEHOLDER.sub(fill, target)


def to_ours(key: str, layout: Layout, levels: int, per_level: int = PER_LEVEL) -> str | None:
    """Our name of a file's key, None where no rule knows it.

    `levels`: of the decoder (or encoder) in the file; `per_level`: numbers a level takes, as `count_per_level` says.
    """
    rules = chain(layout.spellings, layout.rules)
    names = (_rewrite(key, theirs, ours, levels, per_level) for theirs, ours in rules)
    return next((name for name in names if name is not None), None)


def to_theirs(key: str, layout: Layout, levels: int, per_level: int = PER_LEVEL) -> str | None:
    """The name that our key has in a file of that layout, None where the layout has no place for it."""
    names = (_rewrite(key, ours, theirs, levels, per_level) for theirs, ours in layout.rules)
    return next((name for name in names if name is not None), None)


def core_names(layout: Layout) -> list[str]:
    """What every file of that layout holds, by its names."""
    return [to_theirs(key, layout, 4) or key for key in FAMILIES[layout.family].core_keys(layout.name)]


def count_levels(keys: Iterable[str]) -> int:
    """How many resolution levels the keys of one file name, in any layout; 0 where levels are not named."""
    pattern = re.compile(r"(?:decoder\.up(?:_blocks)?|encoder\.down(?:_blocks)?)\.([0-9]{1,3})\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, keys) if match), default=-1)


def count_per_level(keys: Iterable[str]) -> int:
    """How many numbers a level takes where a decoder's blocks and upsamples are counted in one row over all levels:
    its blocks and one more. From the keys of one file, in any layout."""
    ends = re.compile(r"decoder\.upsamples\.(\d{1,4})\.resample\.")
    blocks = re.compile(r"decoder\.(?:upsamples|up_blocks\.0\.resnets)\.(\d{1,4})\.")
    found = [[int(match[1]) for match in map(pattern.match, keys) if match] for pattern in (ends, blocks)]
    return min(found[0]) + 1 if found[0] else 2 + max(found[1], default=-1)


def is_attention_weight(key: str) -> bool:
    """Whether our key is one of the four 1x1 convolutions of attention."""
    names = r"(attn_1|attn\.\d+)\.(q|k|v|proj_out)|attn\.to_(q|k|v|out)"
    return re.search(rf"\.({names})\.weight$", key) is not None


def layouts_of(model: nn.Module) -> dict[str, Layout]:
    """The layouts that a model can be written in, by name; the usual one first."""
    return {row.name: row for row in family_of(model).layouts}


def layout_named(model: nn.Module, layout: str | None = None) -> str:
    """The layout that is meant: some have a second name; None is the one that a model is usually written in."""
    rows = layouts_of(model)
    if layout is None:
        return next(iter(rows))
    return next((row.name for row in rows.values() if row.alias and row.alias == layout), layout)


def to_layout(model: nn.Module, layout: str) -> dict[str, Tensor]:
    """The model's tensors under the names (and attention shapes) of that layout; InputError where there is none."""
    rows = layouts_of(model)
    if not isinstance(layout, str) or layout not in rows:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"layout: expected one of {', '.join(rows)}, got {layout!r}: choose one of these")
    row = family_of(model).layout_of(model, rows[layout])
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(IGNORED)}
    levels, per_level = count_levels(state), count_per_level(state)
    named: dict[str, Tensor] = {}
    thirds: dict[str, list[Tensor]] = {}
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
        if theirs.endswith(THIRDS):  # ours come in their order
            thirds.setdefault(theirs[: -len(THIRDS[0])], []).append(tensor)
        else:
            named[theirs] = tensor
    named |= {theirs: torch.cat(parts) for theirs, parts in thirds.items()}
    return named | family_of(model).beside(model, layout, named)
