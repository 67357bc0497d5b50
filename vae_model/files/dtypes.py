"""The number formats that weights and activations may have, and reading their names."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import InputError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


def parse_dtype(name: Any) -> torch.dtype:
    """Read "bfloat16", "bf16", "torch.bfloat16" or a torch.dtype, likewise for float16, float32 and float64.

    Raises:  InputError in one line that lists the names, for anything else.
    """
    plain = str(name).removeprefix("torch.").lower()
    plain = _SHORT_DTYPES.get(plain, plain)
    if plain not in DTYPES:
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, got {str(name)!r}: choose one of these")
    return DTYPES[plain]
