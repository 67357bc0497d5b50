"""Dictionaries inside of dictionaries, as trainings save them: all tensors in one row, named by their way down.

{"ema": {"decoder.conv_in.weight": ...}} becomes {"ema.decoder.conv_in.weight": ...}, so that a dictionary and a prefix
are one thing to whoever looks for a model in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

_DEEPEST = 8
"""How many dictionaries may lie one inside of the other: a pickle can hold itself."""
_USUAL = "state_dict"


def flatten(content: Mapping[str, Any]) -> tuple[list[tuple[str, Tensor]], frozenset[str]]:
    """(named tensors, the ways to dictionaries in which some lie, each with a dot behind it).

    Where a "state_dict" is all that holds tensors, it is taken as if there were nothing around it. No dictionary is
    read twice, and what is no text or number names nothing.
    """
    seen: set[int] = set()
    levels = 0
    while levels < _DEEPEST and isinstance(content.get(_USUAL), Mapping) and _is_alone(content):
        content = cast(Mapping[str, Any], content[_USUAL])
        levels += 1
    named: list[tuple[str, Tensor]] = []
    ways: set[str] = set()
    _walk(content, "", named, ways, seen)
    return named, frozenset(ways)


def _is_alone(content: Mapping[str, Any]) -> bool:
    """Whether nothing beside its "state_dict" holds tensors."""
    others = {key: value for key, value in content.items() if key != _USUAL}
    named: list[tuple[str, Tensor]] = []
    _walk(others, "", named, set(), {id(content)})
    return not named


def _walk(
    content: Mapping[Any, Any], way: str, named: list[tuple[str, Tensor]], ways: set[str], seen: set[int]
) -> None:
    seen.add(id(content))
    for key, value in content.items():
        if not isinstance(key, (str, int)):
            continue
        if isinstance(value, Tensor):
            named.append((f"{way}{key}", value))
            if way:
                ways.add(way)
        elif isinstance(value, Mapping) and id(cast(object, value)) not in seen and way.count(".") < _DEEPEST:
            _walk(cast(Mapping[Any, Any], value), f"{way}{key}.", named, ways, seen)
