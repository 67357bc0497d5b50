"""Translating keys between a file's layout and our modules, by the rules of `layouts`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from .layouts import Layout

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
_PLACEHOLDER = re.compile(r"\{(\w+)([~+]1?)?\}")


@cache
def _compile(template: str) -> re.Pattern[str]:
    """A template as a regular expression; the group of {i~} is called i_flip, that of {k+1} k_plus."""
    parts: list[str] = []
    end = 0
    for match in _PLACEHOLDER.finditer(template):
        suffix = {"~": "_flip", "+1": "_plus", None: ""}[match[2]]
        parts += [re.escape(template[end : match.start()]), f"(?P<{match[1]}{suffix}>{_PATTERNS[match[1]]})"]
        end = match.end()
    return re.compile("".join(parts) + re.escape(template[end:]))


def _rewrite(key: str, source: str, target: str, levels: int) -> str | None:
    match = _compile(source).fullmatch(key)
    if match is None:
        return None
    values: dict[str, str] = {}
    for group, text in match.groupdict().items():
        if group.endswith("_flip"):
            text = str(levels - 1 - int(text))
        elif group.endswith("_plus"):
            text = str(int(text) - 1)
        if text.startswith("-"):
            return None
        values[group.split("_")[0]] = text

    def fill(placeholder: re.Match[str]) -> str:
        text = values[placeholder[1]]
        if placeholder[2] == "~":
            return str(levels - 1 - int(text))
        return str(int(text) + 1) if placeholder[2] == "+1" else text

    return _PLACEHOLDER.sub(fill, target)


def to_ours(key: str, layout: Layout, levels: int) -> str | None:
    """Our name of a file's key, None where no rule knows it. `levels`: of the decoder (or encoder) in the file."""
    for theirs, ours in layout.rules:
        name = _rewrite(key, theirs, ours, levels)
        if name is not None:
            return name
    return None


def to_theirs(key: str, layout: Layout, levels: int) -> str | None:
    """The name that our key has in a file of that layout, None where the layout has no place for it."""
    for theirs, ours in layout.rules:
        name = _rewrite(key, ours, theirs, levels)
        if name is not None:
            return name
    return None


def count_levels(keys: Iterable[str]) -> int:
    """How many resolution levels the keys of one file name, in any layout; 0 where levels are not named."""
    pattern = re.compile(r"(?:decoder\.up(?:_blocks)?|encoder\.down(?:_blocks)?)\.([0-9]{1,3})\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, keys) if match), default=-1)


def is_attention_weight(key: str) -> bool:
    """Whether our key is one of the four 1x1 convolutions of an AttnBlock."""
    return re.search(r"\.(attn_1|attn\.\d+)\.(q|k|v|proj_out)\.weight$", key) is not None
