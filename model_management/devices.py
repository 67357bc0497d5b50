"""Which device and which dtype a VAE runs in, and reading devices from text."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from typing import Any, cast

import torch

from ..vae_model.errors import InputError
from ..vae_model.files.dtypes import DTYPES as DTYPES
from ..vae_model.files.dtypes import parse_dtype as parse_dtype

# These Turing chips (TU116, TU117) run float16 without tensor cores, and convolutions return NaN on many of them.
_BROKEN_FLOAT16 = re.compile(r"GTX 16\d\d|\bMX[45]50\b|\bT(?:400|500|550|600|1000|1200|2000)\b")
# AMD names its chips by architecture: CDNA from MI100 on and RDNA 3 or later multiply bfloat16 in hardware.
_HIP_BFLOAT16 = re.compile(r"gfx(?:908|90a|9[45]\w|1[1-9]\w\w)")


def get_torch_device() -> torch.device:
    """The fastest kind of device here, with its index: cuda (NVIDIA or AMD), xpu, mps, else cpu."""
    for kind in ("cuda", "xpu", "mps"):
        if _count(kind):
            return canonical_device(torch.device(kind))
    return torch.device("cpu")


def vae_device() -> torch.device:
    """Where a VAE computes."""
    return get_torch_device()


def vae_offload_device() -> torch.device:
    """Where a VAE's weights wait while another model needs the device."""
    return torch.device("cpu")


def output_device() -> torch.device:
    """Where finished images and latents are put: main memory, for they are large and nothing computes on them next."""
    return torch.device("cpu")


def vae_dtype(
    device: torch.device | str | None = None,
    allowed: Sequence[torch.dtype | str] = (torch.bfloat16, torch.float32),
) -> torch.dtype:
    """The first dtype of `allowed` that `device` computes well in, else float32.

    Args:    device: the compute device when None.
             allowed: dtypes the model bears, best first. float16 overflows in many VAEs: allow it for those alone
                 that were made for it.
    """
    device = vae_device() if device is None else device if isinstance(device, torch.device) else as_device(device)
    kinds = [parse_dtype(dtype) if isinstance(dtype, str) else dtype for dtype in allowed]
    return next((dtype for dtype in kinds if _computes_well(device, dtype)), torch.float32)


def canonical_device(device: torch.device) -> torch.device:
    """The same device as its tensors name it: "cuda" becomes cuda:<current>, "mps" mps:0, "cpu:0" cpu."""
    if device.type in ("cpu", "meta"):
        return torch.device(device.type)
    if _index(device) is not None:
        return device
    if device.type in ("cuda", "xpu"):
        return torch.device(device.type, int(getattr(torch, device.type).current_device()))
    return torch.device(device.type, 0)


def as_device(given: Any) -> torch.device:
    """A device or its name, as its tensors name it; InputError for what is none, or whose driver is not here."""
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device: expected a device such as cpu or cuda:0, got {given!r}: name one") from error
    backend = getattr(torch, device.type, None) if device.type in ("cuda", "xpu") else None
    if not getattr(backend, "is_available", lambda: True)():
        raise InputError(f"device: expected a device that is here, got {str(device)!r}: this PyTorch finds none")
    return canonical_device(device)


def parse_device(text: Any) -> torch.device:
    """Read "cpu", "cuda", "cuda:1", "xpu", "mps" and, where torch_directml is imported, "privateuseone:0".

    Returns: the device with its index, as its tensors name it.
    Raises:  InputError in one line that lists what is here, for a name that is no device or is not here.
    """
    counts = {kind: _count(kind) for kind in ("cpu", "cuda", "xpu", "mps", "privateuseone")}
    here = [kind if count == 1 else f"{kind}:0..{count - 1}" for kind, count in counts.items() if count]
    expected = f"device: expected one of {', '.join(here)}, got {str(text)!r}"
    try:
        device = torch.device(text.strip().lower() if isinstance(text, str) else text)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{expected}: write the kind and, if there are several, a colon and a number") from error
    count = counts.get(device.type, 0)
    if not count:
        raise InputError(f"{expected}: this PyTorch finds no such device here, choose one of these")
    if (_index(device) or 0) >= count:
        raise InputError(f"{expected}: numbers start at 0, choose one of these")
    return canonical_device(device)


def _count(kind: str) -> int:
    """How many devices of that kind are here."""
    if kind == "cpu":
        return 1
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    if kind == "privateuseone":
        directml = sys.modules.get("torch_directml")
        return 0 if directml is None else int(directml.device_count())
    backend = getattr(torch, kind)
    return int(backend.device_count()) if backend.is_available() else 0


def _index(device: torch.device) -> int | None:
    """The device's index; torch's own annotation forgets that "cuda" alone has none."""
    return cast("int | None", device.index)


def _computes_well(device: torch.device, dtype: torch.dtype) -> bool:
    if dtype == torch.float32:
        return True
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    is_float16 = dtype == torch.float16
    if device.type == "cuda":
        properties = cast(Any, torch.cuda).get_device_properties(device)
        if torch.version.hip is not None:
            return is_float16 or _HIP_BFLOAT16.match(properties.gcnArchName) is not None
        if is_float16:
            return bool(properties.major >= 6) and _BROKEN_FLOAT16.search(properties.name) is None
        return bool(properties.major >= 8)
    if device.type == "mps":
        return is_float16 or int(platform.mac_ver()[0].split(".")[0] or 0) >= 14
    if device.type == "xpu":
        return is_float16 or bool(getattr(torch.xpu, "is_bf16_supported", lambda: True)())
    return False
