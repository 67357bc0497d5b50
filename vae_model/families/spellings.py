"""The names that the tensors of attention had in a decade of files, beside those of the layouts; read, never written.

Where a layout's own name comes first in its rules, these are tried before them. The shapes of a decade, too: the four
projections are 1x1 convolutions, and were stored as (C, C), (C, C, 1) and (C, C, 1, 1), their biases as (C,), (C, 1)
and (C, 1, 1). Source of the names: latent-diffusion, diffusers and their converters, read as facts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NAMES = {
    "norm": ("norm", "group_norm"),
    "q": ("q", "to_q", "query"),
    "k": ("k", "to_k", "key"),
    "v": ("v", "to_v", "value"),
    "proj_out": ("proj_out", "to_out.0", "proj_attn"),
}
"""Our name -> all that it is known by."""
_PROJECTION = re.compile(
    r".*\.(?:(?:attn_1|attn\.\d+)\.(?:q|k|v|proj_out|to_qkv|to_out)|middle\.1\.(?:to_qkv|proj)|attn\.to_(?:q|k|v|out))"
    r"\.(weight|bias)"
)
_NORM = re.compile(r".*\.(?:attn_1|attn\.\d+)\.norm\.(weight|bias)")


def attention_spellings(places: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Rules for every spelling inside of attention, from (place in the file, place in our modules)."""
    return tuple(
        (f"{theirs}.{name}.{{p}}", f"{ours}.{own}.{{p}}")
        for theirs, ours in places
        for own, names in _NAMES.items()
        for name in names
    )


_OF_IMAGES = re.compile(r".*\.(?:resample\.1|to_qkv|proj)\.weight")
"""Convolutions that have no axis of frames in our modules, either."""


def module_shape(key: str, shape: tuple[int, ...], without_frames: bool = False) -> tuple[int, ...]:
    """The shape that our module has there: projections are 1x1 convolutions, vectors have one side.

    `without_frames`: whether weights over frames, of which there is one, come without that axis.
    """
    if without_frames and key.endswith(".weight") and len(shape) == 4 and not _OF_IMAGES.fullmatch(key):
        return (*shape[:2], 1, *shape[2:])
    found = _PROJECTION.fullmatch(key) or _NORM.fullmatch(key)
    if found is None or not shape:
        return shape
    sides = 2 if found[1] == "weight" and found.re is _PROJECTION else 1
    if len(shape) < sides or any(side != 1 for side in shape[sides:]):
        return shape
    return (*shape[:sides], 1, 1) if sides == 2 else shape[:1]
