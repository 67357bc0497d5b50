"""VAE, the object users hold: images and latents in, latents and images out, with ComfyUI's names and layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint.load import LoadedModel
from .errors.bytesize import parse_bytes
from .errors.wording import needs_half
from .exact.plan.plan import Plan
from .families.first_frame import image_frames, latent_frames
from .families.ldm.layers import set_attention
from .families.table import FAMILIES, decode_raw, encode_raw
from .host import Host, Report, Watch
from .host_names import HostNames, add_alpha, take_not_video, take_vae_options
from .runs.checks import (
    cells,
    check_latents,
    check_options,
    check_pixels,
    check_timesteps,
    cropped,
    smaller_side,
    whole,
)
from .runs.clips import frames_of_latents, frames_of_pixels
from .runs.frames import decode_frames
from .runs.methods import check_method, perform
from .runs.run import ModelRun, Progress, dtype_of_results, plain_output


class VAE(HostNames):
    """An autoencoder on a device. Images are (B, H, W, C) float32 0..1, latents (B, c, h, w) raw as in ComfyUI.

    In `vae_dtype` float64 results are float64, too.

    Of families with frames also clips: (B, F, H, W, C), latents (B, c, T, h, w), F being 1 + `time_factor` * (T - 1).

    `decode` and `encode` take `method`: "exact" (the default) runs the layers strip by strip in the memory there is,
    with the result of "untiled", which runs the whole image at once; "blend" is approximate, overlapping tiles.
    `memory` limits the run above weights, input and output: bytes, text such as "2GiB", or None for all that is free.
    A run that does not fit raises MemoryBudgetError; the method never changes by itself. `last_plan` is what the last
    exact run followed, None where the engine has no rule for a module and the model ran untiled (a warning says so);
    `last_report` tells of the last run of any method.
    """

    last_plan: Plan | None = None
    last_report: Report | None = None
    patcher: Any = None
    """The host's handle on the model, inside ComfyUI."""
    not_video: bool = True
    """Whether a batch of images is that to a model of videos, too; else it would be the frames of one video."""
    memory_limit: int | None = None
    """Bytes that every run keeps to which is given no `memory` of its own."""

    def __init__(  # pyright: ignore[reportInconsistentConstructor]
        self, loaded: LoadedModel, host: Host, *, device: torch.device, dtype: torch.dtype, output_device: torch.device
    ) -> None:
        self.first_stage_model: nn.Module = loaded.model
        self.loaded, self._host = loaded, host
        self.device, self.output_device, self.vae_dtype = device, output_device, dtype
        self.working_dtypes = [torch.bfloat16, torch.float32]
        config = loaded.config
        self._family = FAMILIES[loaded.family]
        patch = self._family.latent_patch(loaded.model)
        self.latent_channels = patch**2 * config.latent_channels
        self.downscale_ratio, self.upscale_ratio = patch * config.factor, patch * config.decode_factor
        self.input_channels, self.output_channels = config.image_channels
        self.is_temporal = self._family.temporal
        self.latent_dim = 3 if self._family.has_frames else 2
        self.time_factor = self._family.time_factor(config)
        self.pad_channel_value = 1.0 if self.input_channels == 4 and self._family.adds_alpha else None  # as ComfyUI's
        set_attention(self.first_stage_model, host.attend)

    @property
    def host(self) -> Host:
        """The surroundings: devices, memory, weights, attention."""
        return self._host

    def process_input(self, image: Tensor) -> Tensor:
        """0..1 to -1..1, a new tensor."""
        return image * 2.0 - 1.0

    def process_output(self, image: Tensor) -> Tensor:
        """-1..1 to 0..1 with clamping, in place."""
        return image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)

    def memory_used_decode(self, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> int:
        """Bytes of activations of an untiled decode at its peak: for one of B images or clips (B, c, T, h, w), of a
        temporal decoder for B frames together.
        """
        frames = shape[0] if self.is_temporal else self._frames_out("decode", shape[2] if len(shape) == 5 else 1)
        pixels = frames * shape[-1] * shape[-2] * self.upscale_ratio**2
        return int(self._family.untiled_elements(self.loaded.config, "decode") * pixels * dtype.itemsize)

    def memory_used_encode(self, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> int:
        """Bytes of activations that an untiled encode of one of B images, or of clips (B, C, F, H, W), takes."""
        pixels = (shape[2] if len(shape) == 5 else 1) * shape[-1] * shape[-2]
        return int(self._family.untiled_elements(self.loaded.config, "encode") * pixels * dtype.itemsize)

    def _frames_out(self, what: str, frames: int) -> int:
        """Frames that become of those of one clip."""
        return (image_frames if what == "decode" else latent_frames)(frames, self.time_factor)

    @needs_half("decoder")
    def decode(
        self,
        samples: Tensor,
        method: str = "exact",
        memory: int | str | None = None,
        *,
        tile_size: int | None = None,
        overlap: int | None = None,
        progress: Progress | None = None,
        timesteps: int | None = None,
        vae_options: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Latents to images.

        Args:    samples: (B, latent_channels, h, w) raw latents, any float dtype and device; of clips with an axis of
                 frames behind the channels.
                 method: "exact", "untiled" or "blend" (approximate).
                 memory: bytes or text such as "2GiB" for the run above the weights; None for what is free.
                 tile_size: in pixels; the height of strips, or the side of the tiles of "blend". None chooses.
                 overlap: of "blend", in pixels, 64 unless told.
                 progress: called with the fraction done, 0..1.
                 timesteps: of a temporal decoder, how many frames belong together; None: the whole batch.
                 vae_options: ComfyUI's way of saying `timesteps`, by name or in the place of `method`.
        Returns: (B, h * f, w * f, C) float32 0..1 on `output_device`; of clips, those of a single frame too,
                 (B, F, h * f, w * f, C). What has an axis of frames keeps it, as in ComfyUI and diffusers.
        Raises:  InputError for latents this VAE cannot take, MemoryBudgetError where the run does not fit.
        """
        method, timesteps = take_vae_options(method, vae_options, timesteps)
        check_method(method)
        tile_size, overlap = check_options(tile_size, overlap, progress)
        z, clip, keeps_axis = frames_of_latents(samples, self._family.has_frames, self.latent_channels)
        z = check_latents(z, self.latent_channels)
        group = clip if clip > 1 else check_timesteps(timesteps, len(z), self.is_temporal)
        f, made = self.upscale_ratio, self._frames_out("decode", clip)
        shape = (len(z) // clip * made, z.shape[2] * f, z.shape[3] * f, self.output_channels)
        out = self._run("decode", method, z, shape, memory, tile_size, overlap, progress, group)
        return out.unflatten(0, (-1, made)) if keeps_axis else out

    @needs_half("decoder")
    def decode_frames(
        self,
        samples: Tensor,
        memory: int | str | None = None,
        *,
        progress: Progress | None = None,
        timesteps: int | None = None,
    ) -> Iterator[Tensor]:
        """Finished frames of a clip while later ones are computed: what `decode` gives, as exact, never all at once.

        Frames of latents run once, a few at a time, behind what every convolution saw last of those before; that takes
        memory that no number of frames changes. The first frames come when the first few are done. Where it does not
        fit, or a clip is so short that it fits at once, the clip runs whole: it waits in main memory, in the run's
        dtype, and the first frame comes when the last is done. `last_plan` tells which, and counts what waits.

        Args:    samples, memory, progress, timesteps: as for `decode`, whose method is "exact".
        Returns: an iterator of (F, h * f, w * f, C), float32 0..1 on `output_device`, frames in order, of a batch clip
                 by clip. To close it, or to drop it, frees all that it holds.
        Raises:  InputError at once for what this VAE cannot take; MemoryBudgetError, or what stopped the run, by the
                 iterator.
        """
        budget = self.memory_limit if memory is None else parse_bytes(memory)
        return decode_frames(self, samples, budget, progress, timesteps)

    @needs_half("encoder")
    def encode(
        self,
        pixels: Tensor,
        method: str = "exact",
        memory: int | str | None = None,
        *,
        tile_size: int | None = None,
        overlap: int | None = None,
        progress: Progress | None = None,
        not_video: bool | None = None,
    ) -> Tensor:
        """Images to latents: the posterior mean.

        Args:    pixels: (B, H, W, C) 0..1, clips (B, F, H, W, C); a channel more than the model's, alpha, is dropped
                 with a note, both sides are cropped centrally to multiples of the factor with a note, and frames beyond
                 1 + `time_factor` * n left out with a note.
                 method, memory, tile_size, overlap, progress: as for `decode`.
                 not_video: whether a batch is one of images, not a clip; None: the attribute's word. Also in the place
                 of `method`.
        Returns: (B, latent_channels, H // f, W // f), of a model of videos (B, latent_channels, T, H // f, W // f),
                 float32 on `output_device`.
        Raises:  InputError for images this VAE cannot take, MemoryBudgetError where the run does not fit.
        """
        method, not_video = take_not_video(method, not_video)
        check_method(method)
        tile_size, overlap = check_options(tile_size, overlap, progress)
        f = self.downscale_ratio
        as_video = not (self.not_video if not_video is None else not_video)
        pixels = add_alpha(pixels, self.input_channels, self.pad_channel_value)
        step = 1 if self._family.takes_any_frames else self.time_factor
        pixels, clip = frames_of_pixels(pixels, self._family.has_frames, as_video, step, self.input_channels)
        x = cropped(check_pixels(pixels, self.input_channels, f), f).movedim(-1, 1)  # (B, C, H, W)
        made = self._frames_out("encode", clip)
        shape = (len(x) // clip * made, self.latent_channels, x.shape[2] // f, x.shape[3] // f)
        out = self._run("encode", method, x, shape, memory, tile_size, overlap, progress, clip)
        if self.latent_dim == 2:
            return out
        return out.unflatten(0, (-1, made)).transpose(1, 2)  # a view made in inference mode could not be changed

    def decode_tiled(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
        method: str = "exact",
    ) -> Tensor:
        """ComfyUI's tiled decode: exact, in strips of the tiles' height; "blend" is approximate. In latent cells."""
        f = self.upscale_ratio
        side, shared = smaller_side(tile_x, tile_y), whole(overlap, "overlap", 0)
        pixels = [None if amount is None else f * amount for amount in (side, shared)]
        return self.decode(samples, method, tile_size=pixels[0], overlap=pixels[1])

    def encode_tiled(
        self,
        pixel_samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
        method: str = "exact",
        not_video: bool | None = None,
    ) -> Tensor:
        """ComfyUI's tiled encode: exact, in strips of the tiles' height; "blend" is approximate. Sizes in pixels."""
        side = smaller_side(tile_x, tile_y)
        return self.encode(pixel_samples, method, tile_size=side, overlap=overlap, not_video=not_video)

    def _run(
        self,
        what: str,
        method: str,
        x: Tensor,
        shape: tuple[int, int, int, int],
        memory: int | str | None,
        tile_size: int | None,
        overlap: int | None,
        progress: Progress | None,
        group: int = 1,
    ) -> Tensor:
        """What becomes of x (B, C, H, W), images or latents of `shape`. All sizes are in pixels."""
        decodes = what == "decode"
        height, width = shape[1:3] if decodes else x.shape[2:]
        f = self.upscale_ratio if decodes else self.downscale_ratio
        used = self.memory_used_decode if decodes else self.memory_used_encode
        model, dtype = self._decode_raw if decodes else self._encode_raw, self.vae_dtype
        allowed = self.memory_limit if memory is None else memory
        report = self.last_report = Report.of(self, what, len(x), height, width, method)
        made = plain_output(shape, self.output_device, dtype_of_results(dtype))
        report.frames = max(len(x), shape[0]) if group > 1 else 0
        with Watch(report, self.host.tell, self.device) as watch, made as out:
            run = ModelRun(
                vae=self,
                what=what,
                x=x,
                out=out.movedim(-1, 1) if decodes else out,
                write=(lambda place, rows: self.process_output(place.copy_(rows))) if decodes else Tensor.copy_,
                host=self.host,
                dtype=dtype,
                budget=None if allowed is None else parse_bytes(allowed),
                watch=watch,
                progress=progress,
                group=group,
                group_out=len(out) * group // len(x),
                strip_rows=tile_size if decodes or tile_size is None else cells(tile_size, f),
                model=partial(model, timesteps=group) if self.is_temporal or group > 1 else model,
                untiled_bytes=lambda h, w: used((group, 1, h, w) if self.is_temporal else (1, 1, group, h, w), dtype),
                factor=f,
                tile_size=tile_size,
                overlap=overlap,
            )
            kept = self.last_plan = None if method == "exact" else self.last_plan
            self.last_plan = perform(run, method) or kept
        return out

    def _decode_raw(self, z: Tensor, timesteps: int | None = None) -> Tensor:
        return decode_raw(self.first_stage_model, z, timesteps)

    def _encode_raw(self, x: Tensor, timesteps: int | None = None) -> Tensor:
        return encode_raw(self.first_stage_model, self.process_input(x), self.latent_channels, timesteps)
