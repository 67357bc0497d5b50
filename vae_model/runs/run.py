"""What the three methods have in common: one call of decode or encode, where it runs, and where its result goes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..families.coder import Coder
from ..families.table import decoder_of, encoder_of
from ..host import Host, Watch

Progress = Callable[[float], None]


def coder_of(vae: Any, what: str) -> Coder:
    """The decoder or encoder of a VAE, ours or the host's, as its model is now.

    UnsupportedModule where the engine has no rule for it.
    """
    model = vae.first_stage_model
    if what == "decode":
        return decoder_of(model)
    return encoder_of(model, vae.latent_channels).behind(vae.process_input)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call of decode or encode. Sizes of tiles are in pixels of the image, whichever way it goes."""

    vae: Any
    """Of ours, or of a host."""
    what: str
    """"decode" or "encode"."""
    x: Tensor
    """(B, C, H, W), latents or images; of clips all frames."""
    out: Tensor
    """(B, D, H', W'), any strides: filled by the run. Of clips the frames may be others, and more or fewer."""
    write: Callable[[Tensor, Tensor], object]
    """(some rows of `out`, the raw ones (b, D, n, W') that belong there): puts them in."""
    host: Host
    dtype: torch.dtype
    budget: int | None
    """Bytes that the user allows, None for what is free."""
    watch: Watch
    progress: Progress | None = None
    group: int = 1
    """Frames that belong together: they run together, as one item."""
    group_out: int | None = None
    """Frames that become of them; None: as many."""
    strip_rows: int | None = None
    """Height of strips in rows of the result, None chooses."""

    @property
    def device(self) -> torch.device:
        """Where the VAE computes."""
        return self.vae.device

    def load(self, memory_required: int) -> bool:
        """Put the weights on `device`, with room beside them; whether nothing but their place has changed."""
        as_it_was = self.host.load_model(self.vae.first_stage_model, self.device, memory_required) is True
        self.watch.loaded()
        return as_it_was

    def result(self, item: int) -> Tensor:
        """What belongs to images `item` and those behind it, (b, D, H', W')."""
        return self.out[item if self.group_out is None else item // self.group * self.group_out :]

    def put(self, item: int, first: int, strip: Tensor, *, by_columns: bool = False) -> None:
        """Take finished rows (b, D, n, W'), or columns (b, D, H', n), into the result."""
        axis = 3 if by_columns else 2
        place = self.result(item)[: len(strip)].narrow(axis, first, strip.shape[axis])
        self.write(place, strip)

    def report(self, fraction: float) -> None:
        """Tell how far the run is."""
        if self.progress is not None:
            self.progress(fraction)
        self.watch.fraction(fraction)


@dataclass(frozen=True, kw_only=True)
class ModelRun(Run):
    """A run that the model itself can do, too, on whole images or on tiles of them."""

    model: Callable[[Tensor], Tensor]
    """(b, C, h, w) on `device` in `dtype` -> the raw result."""
    untiled_bytes: Callable[[int, int], int]
    """(rows, columns of x) -> bytes of activations that the model takes for one item."""
    factor: int
    """Pixels along one side of a latent cell."""
    tile_size: int | None = None
    """Side of the tiles of "blend", None chooses."""
    overlap: int | None = None

    def available(self) -> int:
        """Bytes to go by: what the user allows, else what is free."""
        return self.host.get_free_memory(self.device) if self.budget is None else self.budget

    def attempt(self, x: Tensor) -> Tensor | None:
        """The model's result, or None where memory ran out; the failed tensors are freed before this returns."""
        self.host.check_interrupt()
        try:
            return self.model(x.to(self.device, self.dtype))
        except Exception as error:
            if not self.host.is_oom(error):
                raise
        self.host.soft_empty_cache()  # outside the except block: its traceback would keep the failed tensors alive
        return None


def dtype_of_results(dtype: torch.dtype) -> torch.dtype:
    """Of images and latents that a VAE in `dtype` gives: float32, as everywhere; float64 where it computes in that."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@contextmanager
def plain_output(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32
) -> Generator[Tensor, None, None]:
    """Inference mode, and the tensor of that shape that is to be filled within it.

    A tensor made in inference mode can never be saved for a backward pass, so whoever trains on a result would have to
    copy it first. One made before is a plain tensor without gradient, and writing into it costs the same. Where the
    caller is in inference mode himself, so is the result.
    """
    out = torch.empty(shape, dtype=dtype, device=device)
    with torch.inference_mode():
        yield out
