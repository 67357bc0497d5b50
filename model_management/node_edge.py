"""The edge of every node: inputs as ComfyUI reads them, checked and unpacked, results packed, errors in one line.

What travels along a workflow's wires are LATENT dictionaries, IMAGE batches and MASKs. The host's log has an error's
traceback.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar, cast

from torch import Tensor

from ..vae_model.errors import InputError
from ..vae_model.errors.bytesize import parse_bytes
from ..vae_model.errors.wording import in_words, is_foreign
from ..vae_model.runs.checks import whole, widened
from .oom import is_oom

P = ParamSpec("P")
R = TypeVar("R")
GIB = 2**30

MEMORY_INPUT = {
    "memory": (
        "FLOAT",
        {
            "default": 0.0,
            "min": 0.0,
            "max": 1024.0,
            "step": 0.01,  # The page rounds what is typed to it, and 0 means something else than a little.
            "tooltip": "GiB that the run may use above the weights. 0: automatic, from what is free.",
        },
    )
}


def inputs(required: dict[str, Any], optional: dict[str, Any]) -> staticmethod[[], dict[str, Any]]:
    """A node's INPUT_TYPES, in the core's order where a node of the core's is its like."""

    def asked() -> dict[str, Any]:
        return {"required": dict(required), "optional": dict(optional)}

    return staticmethod(asked)


def integer(default: int, least: int, step: int, tooltip: str, most: int = 4096) -> tuple[str, dict[str, Any]]:
    """An input of whole numbers."""
    return "INT", {"default": default, "min": least, "max": most, "step": step, "tooltip": tooltip}


def in_one_line(method: Callable[P, R]) -> Callable[P, R]:
    """A node's method whose inputs are checked by their names, and whose foreign errors are worded.

    Out of memory passes as it is: the host acts on it. So does everything of the host's own, an interruption above all.
    """

    @wraps(method)
    def edge(*args: P.args, **options: P.kwargs) -> R:
        given = signature(method).bind(*args, **options)
        for name in CHECKS.keys() & given.arguments.keys():
            given.arguments[name] = CHECKS[name](given.arguments[name])
        try:
            return method(*given.args, **given.kwargs)  # pyright: ignore[reportCallIssue]
        except Exception as error:
            if is_oom(error) or not is_foreign(error):
                raise
            raise in_words(error, method.__name__) from error

    return edge


def _found(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    return "nothing" if value is None else type(value).__name__


def _require_vae(vae: Any) -> Any:
    if not (hasattr(vae, "decode") and hasattr(vae, "encode")):
        remedy = "the checkpoint may hold none, connect a VAE loader" if vae is None else "connect a VAE loader"
        raise InputError(f"vae: expected a VAE, got {_found(vae)}: {remedy}")
    return vae


def _take_samples(samples: Any) -> Any:
    """The tensor of a LATENT; of a nested one the first."""
    latent: Any = cast("dict[str, Any]", samples).get("samples") if isinstance(samples, dict) else samples
    latent = latent.unbind()[0] if getattr(latent, "is_nested", False) else latent
    if not (isinstance(samples, dict) and isinstance(latent, Tensor)):
        found, remedy = _found(latent), "connect what samples or encodes"
        if isinstance(samples, dict) and latent is None and samples:
            found = f"a dictionary with {', '.join(map(str, cast('dict[str, Any]', samples)))}"
        elif isinstance(samples, Tensor):
            found, remedy = f"a tensor {found} alone", 'in Python pass {"samples": tensor}'
        raise InputError(f"samples: expected a latent, got {found}: {remedy}")
    return widened(latent)


def _require_pixels(pixels: Any) -> Any:
    if not isinstance(pixels, Tensor) or pixels.ndim not in (4, 5):
        raise InputError(
            f"pixels: expected images (batch, height, width, channels), got {_found(pixels)}: connect an image"
        )
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3, 4) and pixels.shape[-1] > 4:
        raise InputError(
            f"pixels: expected images (batch, height, width, channels), got {_found(pixels)}: "
            "put the channels last, by movedim(1, -1)"
        )
    if not pixels.is_floating_point():
        raise InputError(f"pixels: expected floats in 0..1, got {pixels.dtype}: divide by the largest possible value")
    return widened(pixels)


def _require_mask(mask: Any) -> Any:
    if not isinstance(mask, Tensor) or mask.ndim < 2 or mask.numel() == 0:
        raise InputError(f"mask: expected (batch, height, width), got {_found(mask)}: connect a mask")
    return mask


_WHOLE = {
    **dict.fromkeys(("tile_size", "width", "height", "frames"), 1),
    **dict.fromkeys(("overlap", "temporal_size", "temporal_overlap", "grow_mask_by"), 0),
}
"""Inputs of whole numbers, and the least of each that can be meant."""

CHECKS: dict[str, Callable[[Any], Any]] = {
    "vae": _require_vae,
    "samples": _take_samples,
    "pixels": _require_pixels,
    "mask": _require_mask,
    **{name: partial(whole, what=name, least=least) for name, least in _WHOLE.items()},
}
"""What a node's method gets for an input, by its name, which is the same at every node."""


def flatten_frames(images: Tensor) -> Tensor:
    """Video frames (B, T, H, W, C) as a batch of images (B * T, H, W, C); images as they are."""
    return images.reshape(-1, *images.shape[-3:]) if images.ndim == 5 else images


def image_channels(pixels: Any, vae: Any) -> Any:
    """Images (..., C) without alpha, unless the VAE takes it: ours say so, the host's take what they give."""
    return pixels[..., : max(3, getattr(vae, "input_channels", getattr(vae, "output_channels", 3)))]


def memory_bytes(gib: Any) -> int | None:
    """A widget's amount in bytes, None for automatic: a number is GiB, also as text; text with a unit says its own."""
    if isinstance(gib, str):
        try:
            gib = float(gib or 0)
        except ValueError:
            return parse_bytes(gib)
    if gib is None or (isinstance(gib, (int, float)) and gib == 0):
        return None
    amount = float(gib) * GIB if isinstance(gib, (int, float)) else parse_bytes(gib)
    if not 1 <= amount < 2**63:
        way = "give less" if amount >= 2**63 else "give a positive amount"
        raise InputError(f"memory: expected GiB, 0 for automatic, got {gib!r}: {way}")
    return int(amount)


def with_report(vae: Any, result: Any) -> dict[str, Any]:
    """A node's result with what the VAE tells of its last run, for the node to show."""
    report = getattr(vae, "last_report", None)
    return {"ui": {"exact_vae": [] if report is None else [report.as_dict()]}, "result": (result,)}
