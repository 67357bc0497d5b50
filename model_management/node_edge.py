"""The edge of every node: inputs that are there, and errors in one line. The host's log has the traceback."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar, cast

from torch import Tensor

from ..vae_model.errors import InputError
from ..vae_model.errors.wording import in_words, is_foreign
from .oom import is_oom

P = ParamSpec("P")
R = TypeVar("R")


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


def _widened(x: Tensor) -> Tensor:
    """Numbers of 8 bits as float32, which is exact; PyTorch computes nothing with them."""
    return x.float() if x.is_floating_point() and x.dtype.itemsize == 1 else x


def _require_vae(vae: Any) -> Any:
    if not (hasattr(vae, "decode") and hasattr(vae, "encode")):
        remedy = "the checkpoint may hold none, connect a VAE loader" if vae is None else "connect a VAE loader"
        raise InputError(f"vae: expected a VAE, got {_found(vae)}: {remedy}")
    return vae


def _require_samples(samples: Any) -> Any:
    latent: Any = cast("dict[str, Any]", samples).get("samples") if isinstance(samples, dict) else samples
    if not (isinstance(samples, dict) and (isinstance(latent, Tensor) or getattr(latent, "is_nested", False))):
        raise InputError(f"samples: expected a latent, got {_found(latent)}: connect what samples or encodes")
    return {**cast("dict[str, Any]", samples), "samples": _widened(latent)} if isinstance(latent, Tensor) else samples


def _require_pixels(pixels: Any) -> Any:
    if not isinstance(pixels, Tensor) or pixels.ndim not in (4, 5):
        raise InputError(
            f"pixels: expected images (batch, height, width, channels), got {_found(pixels)}: connect an image"
        )
    if not pixels.is_floating_point():
        raise InputError(f"pixels: expected floats in 0..1, got {pixels.dtype}: divide by the largest possible value")
    return _widened(pixels)


def _require_mask(mask: Any) -> Any:
    if not isinstance(mask, Tensor) or mask.ndim < 2 or mask.numel() == 0:
        raise InputError(f"mask: expected (batch, height, width), got {_found(mask)}: connect a mask")
    return mask


CHECKS: dict[str, Callable[[Any], Any]] = {
    "vae": _require_vae,
    "samples": _require_samples,
    "pixels": _require_pixels,
    "mask": _require_mask,
}
"""What becomes of inputs, by their names, which are the same at every node."""
