"""What a Lightning checkpoint tells of its model beside the weights: the arguments among `hyper_parameters`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast


def told_settings(content: Mapping[str, Any]) -> dict[str, str]:
    """Hints, as a file of ours has them in its header, of what no shape tells: groups, tanh_out, give_pre_end.

    Of a distilled model scale and shift, which its training always knows.
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
