"""Images out of the batches that people's data loaders make."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import InputError

logger = logging.getLogger(__name__)

KEYS = ("jpg", "image")
"""Where images are in a batch that is a mapping, as generative-models and as latent-diffusion call it."""

_RANGE_SLACK = 1e-3
"""How far beyond -1..1 an image may lie: more than rounding, less than any other scaling."""
_LARGEST = 16.0
"""Beyond it nothing is noise or a standardised image any more."""


def images_of(
    batch: Any, key: str = KEYS[0], channels: int | None = None, told: set[str] | None = None
) -> tuple[Tensor, Tensor | None]:
    """(images (B, C, H, W) in -1..1, numbers of the crops where the batch has an entry `crop`, else None).

    Args:    batch: a tensor; a mapping with the entry `key` (the default one may also be called `image`); or a tuple
             or list that begins with the images, such as (image, label). uint8 is scaled to -1..1.
             channels: those of the model; images that have them last, (B, H, W, C), are turned round, and grey ones
             may have none, (B, H, W).
             told: the warnings that were given already; each is given once.
    Values around zero that go beyond -1..1, as of noise or standardised images, are taken as they are, with a warning.
    Raises:  InputError for anything else, such as floats of 0..255.
    """
    numbers: Tensor | None = None
    if isinstance(batch, Mapping):
        entries = cast("Mapping[str, Any]", batch)
        found = [name for name in ((key, *KEYS) if key in KEYS else (key,)) if name in entries]
        if not found:
            names = ", ".join(map(str, entries)) or "nothing"
            raise InputError(f"batch: expected an entry {key!r}, got {names}: set input_key to one of these")
        batch, numbers = entries[found[0]], entries.get("crop")
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and batch:
        batch = cast("Sequence[Any]", batch)[0]
    if not isinstance(batch, Tensor):
        raise InputError(
            f"batch: expected a tensor, a mapping with {key!r} or (images, ...), got {type(batch).__name__}: convert it"
        )
    return _images(batch, channels, set() if told is None else told), numbers


def _images(x: Tensor, channels: int | None, told: set[str]) -> Tensor:
    """Channels first; bytes in -1..1; floats as they are, if they lie there or about there."""
    if x.ndim == 3 and channels == 1:
        x = x[:, None]
    elif x.ndim == 4 and channels not in (None, x.shape[1]):
        if x.shape[3] != channels:
            raise InputError(
                f"images: expected {channels} channels, (B, {channels}, H, W), got {tuple(x.shape)}: convert them"
            )
        x = x.movedim(3, 1).contiguous()
    if x.ndim == 4 and x.dtype == torch.uint8:
        return x.float() / 127.5 - 1
    if x.ndim != 4 or not x.is_floating_point() or not _about_zero(x, told):
        raise InputError(f"images: expected floats (B, C, H, W) in -1..1, got {_told(x)}: {_remedy(x)}")
    return x


def _remedy(x: Tensor) -> str:
    """What to do about images that are refused, by what is wrong with them first."""
    if x.ndim == 3 and (x.shape[0] in (1, 3, 4) or x.shape[-1] in (1, 3, 4)):
        return "add the batch's dimension, x[None]"
    if x.ndim != 4:
        return "give them these four dimensions"
    if x.is_floating_point() and not bool(x.isfinite().all()):
        return "correct what makes them, some are no numbers or infinite"
    return "scale them" if x.is_floating_point() else "convert them"


def require_whole_cells(x: Tensor, factor: int) -> None:
    """InputError for images (B, C, H, W) without pixels, or that would come back with other sides than they have.

    Args:    factor: pixels along one side of a latent cell.
    """
    height, width = x.shape[-2:]
    if x.numel() == 0:
        raise InputError(f"images: expected at least one, got a batch of {tuple(x.shape)}: leave it out")
    if height % factor or width % factor:
        top, left = (max(side // factor, 1) * factor for side in (height, width))
        todo = "crop" if min(height, width) >= factor else "enlarge"
        raise InputError(
            f"images: expected sides of whole latent cells, multiples of {factor} pixels, got {height} x {width}: "
            f"{todo} them to {top} x {left}"
        )


def _about_zero(x: Tensor, told: set[str]) -> bool:
    """Whether values lie in -1..1 or, told in a warning, to both sides of zero not far beyond."""
    if x.device.type == "meta" or bool((x.abs() <= 1 + _RANGE_SLACK).all()):
        return True
    if not bool((x.abs() <= _LARGEST).all()) or float(x.detach().min()) > -1 - _RANGE_SLACK:
        return False
    if "range" not in told:
        told.add("range")
        text = "images: expected floats in -1..1, got %s: taken as they are; scale them, if they are pictures"
        logger.warning(text, _told(x))
    return True


def _told(x: Tensor) -> str:
    """Dtype, shape and, of floats, range."""
    text = f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
    if x.is_floating_point() and x.numel():
        low, high = (float(value) for value in x.detach().aminmax())
        text += f" in {low:.3g}..{high:.3g}"
    return text
