"""The number formats that weights and activations may have, and reading their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

from ..errors import InputError
from ..errors.listed import nearest

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_SHORT_DTYPES = {
    **dict.fromkeys(("fp32", "f32", "float"), "float32"),
    **dict.fromkeys(("fp16", "f16", "half"), "float16"),
    **dict.fromkeys(("fp64", "f64", "double"), "float64"),
    "bf16": "bfloat16",
}
_NARROW = re.compile(r"(float|fp|f|u?int)8.*|u?int4")


def parse_dtype(name: Any, what: str = "dtype", also: Iterable[str] = ()) -> torch.dtype:
    """Read "bfloat16", "bf16", "torch.bfloat16" or a torch.dtype, likewise for float16, float32 and float64.

    PyTorch's other names, "half", "float" and "double", and short ones, "f32", are known, too.

    Args:    what: how an error calls it. also: what it names beside these, for a caller that knows more words.
    Raises:  InputError in one line that lists the names, for anything else.
    """
    plain = str(name).strip().removeprefix("torch.").lower()
    plain = _SHORT_DTYPES.get(plain, plain)
    if plain in DTYPES:
        return DTYPES[plain]
    shown = repr(name) if isinstance(name, str) or not isinstance(name, torch.dtype) else str(name)
    near = nearest(plain, [*DTYPES, *also])
    way = f"{near} is probably meant" if near else "choose one of these"
    if _NARROW.fullmatch(plain):
        way = "nothing computes in 8 bits, a file of such weights is read in one of these"
    raise InputError(f"{what}: expected one of {', '.join([*also, *DTYPES])}, got {shown}: {way}")
