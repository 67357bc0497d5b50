"""What the dictionary of a checkpoint holds: its tensors, all in one row, and what it tells of its model beside them.

Trainings save dictionaries inside of dictionaries. {"ema": {"decoder.conv_in.weight": ...}} becomes
{"ema.decoder.conv_in.weight": ...}, so that a dictionary and a prefix are one thing to whoever looks for a model in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    for _ in range(_DEEPEST):
        others = {key: value for key, value in content.items() if key != _USUAL}
        if not isinstance(content.get(_USUAL), Mapping) or next(_tensors(others, "", {id(content)}), None):
            break
        content = cast(Mapping[str, Any], content[_USUAL])
    found = list(_tensors(content, "", set()))
    return [(way + name, tensor) for way, name, tensor in found], frozenset(way for way, _, _ in found if way)


def _tensors(content: Mapping[Any, Any], way: str, seen: set[int]) -> Iterator[tuple[str, str, Tensor]]:
    """(way to its dictionary, its name there, tensor) of all that are in none of the dictionaries `seen`."""
    seen.add(id(content))
    for key, value in content.items():
        if isinstance(value, Tensor) and isinstance(key, (str, int)):
            yield way, str(key), value
        elif isinstance(value, Mapping) and isinstance(key, (str, int)):
            inner = cast(Mapping[Any, Any], value)
            if id(inner) not in seen and way.count(".") < _DEEPEST:
                yield from _tensors(inner, f"{way}{key}.", seen)


def told_settings(content: Mapping[str, Any]) -> dict[str, str]:
    """Hints, as a file of ours has them in its header, of what no shape tells: groups, tanh_out, give_pre_end.

    They are among the `hyper_parameters` of a Lightning checkpoint. Of a distilled model scale and shift, which its
    training always knows.
    """
    given = _mapping(content.get("hyper_parameters"))
    encoder = _mapping(given.get("ddconfig"))
    decoder = _mapping(given.get("decoder_ddconfig")) or encoder
    told: dict[str, str] = {}
    for half, arguments in (("encoder", encoder), ("decoder", decoder)):
        groups = arguments.get("num_groups")
        if type(groups) is int:
            told[f"{half}_norm_num_groups"] = str(groups)
    if "teacher" in given:
        for ours, theirs in (("vae_scale", "scaling_factor"), ("vae_shift", "shift_factor")):
            if type(given.get(theirs)) in (int, float):
                told[ours] = repr(given[theirs])
    return told | {name: "True" for name in ("tanh_out", "give_pre_end") if decoder.get(name) is True}


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
