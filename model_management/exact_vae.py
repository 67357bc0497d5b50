"""A VAE of the host made exact: a copy whose class runs the engine, so that every node that is given it does, too.

The original is untouched and nothing of the host is replaced. All that a run needs is read from the copy when it runs:
copies of the copy, another device, a cloned patcher and changed padding all count. A model the engine has no rule for
runs by the VAE's own methods, and the report says why.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..vae_model.errors import MemoryBudgetError
from ..vae_model.errors.bytesize import parse_bytes
from ..vae_model.exact.layer import UnsupportedModule
from ..vae_model.families.coder import Coder
from ..vae_model.families.table import family_knowing
from ..vae_model.host import ENDLESS, Report, Watch
from ..vae_model.runs.checks import crop_centre
from ..vae_model.runs.clips import frames_of_latents, frames_of_pixels
from ..vae_model.runs.exact import run_exact
from ..vae_model.runs.run import Run, coder_of
from ..vae_model.vae import VAE
from .comfy_host import ComfyHost, is_comfyui, output_dtype
from .obstacle import BLEND, OPTIONS, coder_for, correct_factors, factor_of, runs_frames, time_factor_of

logger = logging.getLogger(__name__)


def make_exact(vae: Any, memory: int | str | None = None) -> Any:
    """A copy of a VAE of the host that is exact; one that is exact, or no VAE of the host, as it is.

    `memory`: bytes or text such as "2GiB" for the run above the weights; None for what it kept to before, or is free.
    """
    budget = None if memory is None else parse_bytes(memory)
    known = isinstance(vae, (ExactVAE, VAE))
    if (known and budget is None) or not (known or (is_comfyui() and hasattr(vae, "patcher"))):
        return vae
    made = copy.copy(vae)
    if not known:
        made.__class__ = _exact_class(type(vae))
        correct_factors(made)
    if budget is not None:
        made.memory_limit = budget
    return made


@cache
def _exact_class(kind: type) -> type:
    """The exact class of a host's class; the same one every time."""
    return type("ExactVAE", (ExactVAE, kind), {"__doc__": ExactVAE.__doc__})


def _estimate(what: str) -> Any:
    """The engine's estimate of what a run takes; for what it has no rule for that which the host has set."""
    name = f"memory_used_{what}"

    def planned_bytes(vae: Any, shape: Any, dtype: torch.dtype) -> int:
        try:
            found = image_shape(vae, shape)
            if found is not None:
                program, (frames, *sides) = coder_of(vae, what).program, found
                budget = ENDLESS if vae.memory_limit is None else vae.memory_limit
                size = (frames, program.in_channels, *sides)
                return vae.exact_host.make_plan(program, size, dtype, vae.device, budget).peak_bytes
        except UnsupportedModule:
            pass
        return int(vars(vae)[name](shape, dtype))

    def keep(vae: Any, estimate: Callable[[Any, torch.dtype], int]) -> None:
        vars(vae)[name] = estimate

    return property(lambda vae: partial(planned_bytes, vae), keep)


class ExactVAE:
    """Put before the host's own class: the methods that decode and encode, and the estimates of what they take."""

    memory_limit: int | None = None
    last_report: Report | None = None

    # -- the host's names --------------------------------------------------------------------------------------------

    def decode(self: Any, samples_in: Any, *args: Any, **options: Any) -> Any:
        """(B, c, h, w) -> (B, H, W, C), dtype and device as the host wants them; of a video VAE (B, F, H, W, C)."""
        call = _Call("decode", (samples_in, *args), options, _unknown(args, options))
        return self._exact_call(call, samples_in)

    def encode(self: Any, pixel_samples: Any, *args: Any, not_video: Any = None, **options: Any) -> Any:
        """(B, H, W, C) -> (B, c, h, w), dtype and device as the host wants them; of a video VAE (B, c, T, h, w)."""
        why = _unknown(args, options)
        options |= {} if not_video is None else {"not_video": not_video}
        return self._exact_call(_Call("encode", (pixel_samples, *args), options, why), pixel_samples)

    def decode_tiled(
        self: Any, samples: Any, tile_x: Any = None, tile_y: Any = None, *args: Any, **options: Any
    ) -> Any:
        """As `decode`, in strips of the tiles' height (latent cells); "blend": the VAE's own tiles, approximate.

        Of clips all frames run together, whatever is said of tiles over time: these are not needed.
        """
        rows = _rows(tile_x, tile_y, int(self.spacial_compression_decode()))
        call = _Call("decode_tiled", (samples, tile_x, tile_y, *args), options, _blended(options), rows)
        return self._exact_call(call, samples)

    def encode_tiled(
        self: Any, pixel_samples: Any, tile_x: Any = None, tile_y: Any = None, *args: Any, **options: Any
    ) -> Any:
        """As `encode`, in strips of the tiles' height (pixels); "blend": the VAE's own tiles, approximate."""
        rows = _rows(tile_x, tile_y, 1 / int(self.spacial_compression_encode()))
        call = _Call("encode_tiled", (pixel_samples, tile_x, tile_y, *args), options, _blended(options), rows)
        return self._exact_call(call, pixel_samples)

    def decode_tiled_(self: Any, samples: Any, *args: Any, **options: Any) -> Any:
        """The host's inner method, called by some packs: (B, c, h, w) -> (B, C, H, W), 0..1."""
        return self._exact_call(_Call("decode_tiled_", (samples, *args), options), samples)

    def encode_tiled_(self: Any, pixel_samples: Any, *args: Any, **options: Any) -> Any:
        """The host's inner method: (B, C, H, W) -> (B, c, h, w)."""
        return self._exact_call(_Call("encode_tiled_", (pixel_samples, *args), options), pixel_samples.movedim(1, -1))

    def decode_tiled_3d(self: Any, samples: Any, *args: Any, **options: Any) -> Any:
        """The host's inner method for videos: (B, c, T, h, w) -> (B, C, F, H, W), 0..1."""
        return self._exact_call(_Call("decode_tiled_3d", (samples, *args), options), samples)

    def encode_tiled_3d(self: Any, pixel_samples: Any, *args: Any, **options: Any) -> Any:
        """The host's inner method for videos: (B, C, F, H, W) -> (B, c, T, h, w)."""
        return self._exact_call(_Call("encode_tiled_3d", (pixel_samples, *args), options), pixel_samples.movedim(1, -1))

    memory_used_decode = _estimate("decode")
    """(shape of latents, dtype) -> bytes of a decode that nothing keeps short; the host asks for far more."""
    memory_used_encode = _estimate("encode")
    """(shape of pixels (B, C, H, W), dtype) -> bytes, likewise."""

    # -- running -----------------------------------------------------------------------------------------------------

    @property
    def exact_host(self: Any) -> ComfyHost:
        """The host's memory, weights and progress for this VAE."""
        return ComfyHost(self.patcher, full_load=bool(getattr(self, "disable_offload", False)))

    def _exact_call(self: Any, call: _Call, x: Any) -> Any:
        """The exact result for x; that of the VAE's own method where there is a reason for it."""
        self.throw_exception_if_invalid()
        why = call.why
        if why is None:
            try:
                images, clip = frames_of(self, call, x)
                result = self._exact_run(call, coder_for(self, call.what, images), images, clip)
                return in_the_hosts_axes(self, call, x, result, clip)
            except UnsupportedModule as reason:  # loading may have patched the model
                why = str(reason)
            except MemoryBudgetError as error:  # the host logs where it came from: no place of ours explains it
                raise error.with_traceback(None) from None
        return self._exact_delegate(call, why)

    def _exact_run(self: Any, call: _Call, coder: Coder, x: Tensor, clip: int) -> Tensor:
        """Images (B, H, W, C) of latents (B, c, h, w), or latents of images; `clip` of them are the frames of one.

        `coder` is what the model is now.
        """
        host, program, decodes = self.exact_host, coder.program, call.what == "decode"
        if not decodes:
            x = crop_centre(x, factor_of(program, "encode")) if getattr(self, "crop_input", True) else x
            x = self.vae_encode_crop_pixels(x)[..., : program.in_channels].movedim(-1, 1)  # older hosts leave alpha
        size = program.extent(x.shape[2], x.shape[3], clip)
        sides, made = (size.height, size.width), len(x) // clip * size.frames
        shape = (made, *sides, size.channels) if decodes else (made, self.latent_channels, *sides)
        out = torch.empty(shape, dtype=output_dtype(), device=self.output_device)
        height, width = sides if decodes else x.shape[2:]
        report = self.last_report = Report.of(self, call.what, max(made, len(x)), height, width)
        report.frames = report.images if clip > 1 else 0
        with torch.inference_mode(), host.running(self.device), Watch(report, host.tell, self.device) as watch:
            run = Run(
                vae=self,
                what=call.what,
                x=x,
                out=out.movedim(-1, 1) if decodes else out,
                write=self._exact_write_pixels if decodes else Tensor.copy_,
                host=host,
                dtype=self.vae_dtype,
                budget=self.memory_limit,
                watch=watch,
                group=clip,
                group_out=size.frames,
                strip_rows=call.rows,
            )
            run_exact(run, coder)
        return out

    def _exact_write_pixels(self: Any, place: Tensor, rows: Tensor) -> None:
        rows = rows.to(self.output_device, torch.float32, copy=True)
        finished = self.process_output(rows)  # newer hosts change it in place
        place.copy_(rows if finished is None else finished)

    def _exact_delegate(self: Any, call: _Call, reason: str) -> Any:
        """The VAE's own method; the log and the report say that and why."""
        if reason == BLEND:
            logger.info("%s runs in blended tiles, approximate, as asked", call.what)
        else:
            logger.warning("%s runs by the VAE's own method, which may use approximate tiles: %s", call.what, reason)
        report = self.last_report = Report.of(self, call.what, 0, 0, 0)
        report.exact, report.reason, report.method = False, reason, "blend" if reason == BLEND else "host"
        started = time.perf_counter()
        result = getattr(super(), call.name)(*call.args, **call.options)
        report.seconds = time.perf_counter() - started
        if isinstance(result, Tensor):
            report.images = result.shape[0]
            if call.what == "decode" and result.ndim >= 4:
                report.height, report.width = result.shape[-3], result.shape[-2]
        self.exact_host.show(report)
        return result


@dataclass(frozen=True)
class _Call:
    """One call of a method of the host's, by its name."""

    name: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    why: str | None = None
    """The reason for the VAE's own method, where there is one from the start."""
    rows: int | None = None
    """Height of strips in rows of the result."""

    @property
    def what(self) -> str:
        """ "decode" or "encode"."""
        return self.name[:6]


def _unknown(args: tuple[Any, ...], options: dict[str, Any]) -> str | None:
    return OPTIONS if any(args) or any(options.values()) else None


def _blended(options: dict[str, Any]) -> str | None:
    """BLEND where that is the method in the options; it is taken out of them."""
    return None if options.pop("method", "exact") == "exact" else BLEND


def _rows(tile_x: int | None, tile_y: int | None, scale: float) -> int | None:
    """Strip height in rows of the result for tiles of so many rows of the input."""
    sides = [side for side in (tile_x, tile_y) if side is not None]
    return max(1, int(min(sides) * scale)) if sides else None


def frames_of(vae: Any, call: _Call, x: Any) -> tuple[Any, int]:
    """x as a batch of images or latents of 4 axes, and how many of these are the frames of one clip; pictures are of 1.

    UnsupportedModule for an encoder that the engine has no rule for.
    """
    if not runs_frames(vae):
        return x, 1
    if call.what == "decode":
        x, clip, _ = frames_of_latents(x, True)
        return (x[:, :, 0] if getattr(x, "ndim", 0) == 5 else x), clip
    not_video = call.options.get("not_video")
    as_video = not (getattr(vae, "not_video", False) if not_video is None else not_video)
    family = family_knowing(vae.first_stage_model)
    any_frames = family is not None and family.takes_any_frames
    x, clip = frames_of_pixels(x, True, as_video, 1 if any_frames else time_factor_of(coder_of(vae, "encode").program))
    return (x[:, 0] if getattr(x, "ndim", 0) == 5 else x), clip


def in_the_hosts_axes(vae: Any, call: _Call, x: Any, result: Tensor, clip: int) -> Tensor:
    """Images (B, H, W, C) or latents (B, c, h, w) as the host's method of that name returns them for x."""
    if call.what == "encode":
        if not runs_frames(vae):
            return result
        items = len(result) if clip == 1 else (x.shape[0] if x.ndim == 5 else 1)
        return result.unflatten(0, (items, -1)).transpose(1, 2)
    if not runs_frames(vae) or x.ndim != 5:
        return result.movedim(-1, 1) if call.name == "decode_tiled_" else result
    clips = result.unflatten(0, (x.shape[0], -1))  # (B, F, H, W, C)
    return clips.movedim(-1, 1) if call.name == "decode_tiled_3d" else clips


def image_shape(vae: Any, shape: Any) -> tuple[int, int, int] | None:
    """Frames, height and width in the shape of a batch of images or clips, None for other shapes."""
    if len(shape) == 5 and runs_frames(vae):
        return int(shape[2]), int(shape[3]), int(shape[4])
    return (1, int(shape[2]), int(shape[3])) if len(shape) == 4 and getattr(vae, "latent_dim", 2) == 2 else None
