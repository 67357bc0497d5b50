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
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..vae_model.errors import MemoryBudgetError
from ..vae_model.errors.bytesize import parse_bytes
from ..vae_model.exact.layer import UnsupportedModule
from ..vae_model.families.coder import Coder
from ..vae_model.host import Report, Watch
from ..vae_model.runs.checks import crop_centre
from ..vae_model.runs.exact import ExactRun
from ..vae_model.runs.untiled import Run
from ..vae_model.vae import VAE
from .comfy_host import ComfyHost, is_comfyui, output_dtype
from .frames import image_shape, images_like, latents_like, one_frame, video_obstacle
from .obstacle import BLEND, OPTIONS, correct_factors, factor_of, find_obstacle, half_of

logger = logging.getLogger(__name__)


def make_exact(vae: Any, memory: int | str | None = None) -> Any:
    """A copy of a VAE of the host that is exact; one that is exact, or no VAE of the host, as it is.

    `memory`: bytes or text such as "2GiB" for the run above the weights; None for what it kept to before, or is free.
    """
    limit = None if memory is None else parse_bytes(memory)
    known = isinstance(vae, (ExactVAE, VAE))
    if (known and limit is None) or not (known or (is_comfyui() and hasattr(vae, "patcher"))):
        return vae
    made = copy.copy(vae)
    if not known:
        made.__class__ = _exact_class(type(vae))
        correct_factors(made)
    if limit is not None:
        made.memory_limit = limit
    return made


@cache
def _exact_class(kind: type) -> type:
    """The exact class of a host's class; the same one every time."""
    return type("ExactVAE", (ExactVAE, kind), {"__doc__": ExactVAE.__doc__})


class ExactVAE:
    """Put before the host's own class: the methods that decode and encode, and the estimates of what they take."""

    memory_limit: int | None = None
    last_report: Report | None = None

    # -- the host's names --------------------------------------------------------------------------------------------

    def decode(self: Any, samples_in: Any, *args: Any, **options: Any) -> Any:
        """(B, c, h, w) -> (B, H, W, C), dtype and device as the host wants them; videos of one frame likewise."""
        why = OPTIONS if any(args) or any(options.values()) else None
        own = self._exact_own("decode", samples_in, *args, **options)
        z = one_frame(samples_in)
        return self._exact_or("decode", z, lambda: images_like(self, samples_in, self._exact_decode(z)), own, why)

    def encode(self: Any, pixel_samples: Any, *args: Any, not_video: Any = None, **options: Any) -> Any:
        """(B, H, W, C) -> (B, c, h, w), dtype and device as the host wants them; (B, c, 1, h, w) of a video VAE."""
        x, why = pixel_samples, OPTIONS if any(args) or any(options.values()) else None
        options |= {} if not_video is None else {"not_video": not_video}
        own = self._exact_own("encode", x, *args, **options)
        why = why or video_obstacle(self, x, not_video)
        return self._exact_or("encode", x, lambda: latents_like(self, self._exact_encode(x)), own, why)

    def decode_tiled(
        self: Any, samples: Any, tile_x: Any = None, tile_y: Any = None, *args: Any, **options: Any
    ) -> Any:
        """As `decode`, in strips of the tiles' height (latent cells); "blend": the VAE's own tiles, approximate."""
        z, why = one_frame(samples), None if options.pop("method", "exact") == "exact" else BLEND
        rows = _rows(tile_x, tile_y, int(self.spacial_compression_decode()))
        own = self._exact_own("decode_tiled", samples, tile_x, tile_y, *args, **options)
        return self._exact_or("decode", z, lambda: images_like(self, samples, self._exact_decode(z, rows)), own, why)

    def encode_tiled(
        self: Any, pixel_samples: Any, tile_x: Any = None, tile_y: Any = None, *args: Any, **options: Any
    ) -> Any:
        """As `encode`, in strips of the tiles' height (pixels); "blend": the VAE's own tiles, approximate."""
        x, why = pixel_samples, None if options.pop("method", "exact") == "exact" else BLEND
        rows = _rows(tile_x, tile_y, 1 / int(self.spacial_compression_encode()))
        own = self._exact_own("encode_tiled", x, tile_x, tile_y, *args, **options)
        why = why or video_obstacle(self, x, options.get("not_video"))
        return self._exact_or("encode", x, lambda: latents_like(self, self._exact_encode(x, rows)), own, why)

    def decode_tiled_(self: Any, samples: Any, *args: Any, **options: Any) -> Any:
        """The host's inner method, called by some packs: (B, c, h, w) -> (B, C, H, W), 0..1."""
        own = self._exact_own("decode_tiled_", samples, *args, **options)
        return self._exact_or("decode", samples, lambda: self._exact_decode(samples).movedim(-1, 1), own)

    def encode_tiled_(self: Any, pixel_samples: Any, *args: Any, **options: Any) -> Any:
        """The host's inner method: (B, C, H, W) -> (B, c, h, w)."""
        x = pixel_samples.movedim(1, -1)
        own = self._exact_own("encode_tiled_", pixel_samples, *args, **options)
        return self._exact_or("encode", x, lambda: self._exact_encode(x), own)

    def decode_tiled_3d(self: Any, samples: Any, *args: Any, **options: Any) -> Any:
        """The host's inner method for videos: (B, c, 1, h, w) -> (B, C, 1, H, W), 0..1; of more frames its own."""
        own, z = self._exact_own("decode_tiled_3d", samples, *args, **options), one_frame(samples)
        return self._exact_or("decode", z, lambda: self._exact_decode(z).movedim(-1, 1).unsqueeze(2), own)

    def encode_tiled_3d(self: Any, pixel_samples: Any, *args: Any, **options: Any) -> Any:
        """The host's inner method for videos: (B, C, 1, H, W) -> (B, c, 1, h, w); of more frames its own."""
        own = self._exact_own("encode_tiled_3d", pixel_samples, *args, **options)
        x = one_frame(pixel_samples).movedim(1, -1)
        return self._exact_or("encode", x, lambda: self._exact_encode(x).unsqueeze(2), own)

    @property
    def memory_used_decode(self: Any) -> Callable[[Any, torch.dtype], int]:
        """(shape of latents, dtype) -> bytes of a decode that nothing keeps short; the host asks for far more."""
        return lambda shape, dtype: self._exact_planned_bytes("decode", shape, dtype)

    @memory_used_decode.setter
    def memory_used_decode(self: Any, estimate: Callable[[Any, torch.dtype], int]) -> None:
        vars(self)["memory_used_decode"] = estimate

    @property
    def memory_used_encode(self: Any) -> Callable[[Any, torch.dtype], int]:
        """(shape of pixels (B, C, H, W), dtype) -> bytes, likewise."""
        return lambda shape, dtype: self._exact_planned_bytes("encode", shape, dtype)

    @memory_used_encode.setter
    def memory_used_encode(self: Any, estimate: Callable[[Any, torch.dtype], int]) -> None:
        vars(self)["memory_used_encode"] = estimate

    def _exact_own(self, name: str, *args: Any, **options: Any) -> Callable[[], Any]:
        """The call of the host's own method of this VAE."""
        return lambda: getattr(super(ExactVAE, self), name)(*args, **options)

    # -- what is known -----------------------------------------------------------------------------------------------

    def _exact_or(
        self: Any,
        what: str,
        x: Any,
        exact: Callable[[], Any],
        own: Callable[[], Any],
        why: str | None = None,
    ) -> Any:
        """The exact result; that of the VAE's own method where there is a reason `why`, or one is found."""
        self.throw_exception_if_invalid()
        why = why or find_obstacle(self, what, x)
        if why is None:
            try:
                return exact()
            except UnsupportedModule as reason:  # loading may have patched the model
                why = str(reason)
            except MemoryBudgetError as error:  # the host logs where it came from: no place of ours explains it
                raise error.with_traceback(None) from None
        return self._exact_delegate(what, why, own)

    def _exact_delegate(self: Any, what: str, reason: str, run: Callable[[], Any]) -> Any:
        """The VAE's own method; the log and the report say that and why."""
        if reason == BLEND:
            logger.info("%s runs in blended tiles, approximate, as asked", what)
        else:
            logger.warning("%s runs by the VAE's own method, which may use approximate tiles: %s", what, reason)
        report = self.last_report = self._exact_new_report(what, 0, 0, 0)
        report.exact, report.reason, report.method = False, reason, "blend" if reason == BLEND else "host"
        started = time.perf_counter()
        result = run()
        report.seconds = time.perf_counter() - started
        if isinstance(result, Tensor):
            image = result if what == "decode" else None
            report.images = result.shape[0]
            if image is not None and image.ndim >= 4:
                report.height, report.width = image.shape[-3], image.shape[-2]
        self.exact_host.show(report)
        return result

    # -- running -----------------------------------------------------------------------------------------------------

    @property
    def exact_host(self: Any) -> ComfyHost:
        """The host's memory, weights and progress for this VAE."""
        return ComfyHost(self.patcher, full_load=bool(getattr(self, "disable_offload", False)))

    def _exact_new_report(self: Any, what: str, images: int, width: int, height: int) -> Report:
        dtype = str(self.vae_dtype).removeprefix("torch.")
        return Report(what, width, height, images, dtype, str(self.device))

    def _exact_decode(self: Any, z: Tensor, strip_rows: int | None = None) -> Tensor:
        size = half_of(self, "decode").program.extent(*z.shape[2:])
        shape = (len(z), size.height, size.width, size.channels)
        out = torch.empty(shape, dtype=output_dtype(), device=self.output_device)

        def put(item: int, top: int, rows: Tensor) -> None:
            rows = rows.to(self.output_device, torch.float32, copy=True)
            finished = self.process_output(rows)  # newer hosts change it in place
            out[item : item + 1, top : top + rows.shape[2]] = (rows if finished is None else finished).movedim(1, -1)

        self._exact_run("decode", lambda: half_of(self, "decode"), z, put, strip_rows, (shape[2], shape[1]))
        return out

    def _exact_encode(self: Any, pixels: Tensor, strip_rows: int | None = None) -> Tensor:
        program = half_of(self, "encode").program
        x = crop_centre(pixels, factor_of(program, "encode")) if getattr(self, "crop_input", True) else pixels
        x = self.vae_encode_crop_pixels(x)[..., : program.in_channels].movedim(-1, 1)  # older hosts leave alpha there
        size = program.extent(*x.shape[2:])
        shape = (len(x), self.latent_channels, size.height, size.width)
        out = torch.empty(shape, dtype=output_dtype(), device=self.output_device)

        def put(item: int, top: int, rows: Tensor) -> None:
            out[item : item + 1, :, top : top + rows.shape[2]] = rows

        def make_half() -> Coder:
            half = half_of(self, "encode")
            return Coder(half.program, lambda rows: half.prepare(self.process_input(rows)), half.finish)

        self._exact_run("encode", make_half, x, put, strip_rows, (x.shape[3], x.shape[2]))
        return out

    def _exact_run(
        self: Any,
        what: str,
        make_half: Callable[[], Coder],
        x: Tensor,
        put: Callable[[int, int, Tensor], None],
        strip_rows: int | None,
        pixels: tuple[int, int],
    ) -> None:
        host = self.exact_host
        report = self.last_report = self._exact_new_report(what, len(x), *pixels)

        def load(memory_required: int) -> None:
            host.load_model(self.first_stage_model, self.device, memory_required)

        run = Run(what, self.first_stage_model, load, host, self.device, self.vae_dtype, self.memory_limit, None)
        with torch.inference_mode(), host.running(self.device), Watch(report, host.tell, self.device) as watch:
            ExactRun(run, make_half, strip_rows, put, watch).items(x)

    # -- planning ----------------------------------------------------------------------------------------------------

    def _exact_planned_bytes(self: Any, what: str, shape: Any, dtype: torch.dtype) -> int:
        try:
            sides = image_shape(self, shape)
            if sides is not None:
                half, ample = half_of(self, what), self.memory_limit is None
                size = (1, half.program.in_channels, *sides)
                plan = self.exact_host.make_plan(half.program, size, dtype, self.device, self.memory_limit, ample=ample)
                return plan.peak_bytes
        except UnsupportedModule:
            pass
        return int(vars(self)[f"memory_used_{what}"](shape, dtype))


def _rows(tile_x: int | None, tile_y: int | None, scale: float) -> int | None:
    """Strip height in rows of the result for tiles of so many rows of the input."""
    sides = [side for side in (tile_x, tile_y) if side is not None]
    return max(1, int(min(sides) * scale)) if sides else None
