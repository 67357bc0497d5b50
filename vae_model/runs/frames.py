"""Finished frames of clips while later ones are computed: part by part, each as the whole clip at once has it.

A part is some frames of latents. What convolutions over frames saw last stays from part to part, so that frames of
latents run once; where there is no room for that, or no rule, the clip runs whole and its frames wait in main memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import MemoryBudgetError
from ..errors.bytesize import format_bytes
from ..errors.wording import in_words, is_foreign
from ..exact.layer import UnsupportedModule
from ..exact.plan.plan import Plan
from ..exact.stream.context import Context
from ..exact.stream.past import Past
from ..families.first_frame import image_frames
from ..host import ENDLESS, Report, Watch
from .checks import check_latents, check_options, check_timesteps
from .clips import frames_of_latents
from .exact import ExactRun, logger
from .parts import PARTS, Part, Way, choose_way
from .run import Progress, Run, coder_of, plain_output


def decode_frames(
    vae: Any, samples: Tensor, memory: int | None, progress: Progress | None, timesteps: int | None
) -> Iterator[Tensor]:
    """See `VAE.decode_frames`; what is given is looked at before this returns."""
    check_options(None, None, progress)
    z, clip, _ = frames_of_latents(samples, vae.latent_dim == 3, vae.latent_channels)
    z = check_latents(z, vae.latent_channels)
    group = clip if clip > 1 else check_timesteps(timesteps, len(z), vae.is_temporal)
    return _in_words(_frames(vae, z, group, memory, progress))


def _in_words(frames: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same, foreign errors on the way worded as those of other methods are."""
    try:
        yield from frames
    except Exception as error:
        if not is_foreign(error):
            raise
        raise in_words(error, "decode_frames") from error


def _frames(vae: Any, z: Tensor, group: int, memory: int | None, progress: Progress | None) -> Iterator[Tensor]:
    f = vae.upscale_ratio
    report = vae.last_report = Report.of(vae, "decode", len(z), z.shape[2] * f, z.shape[3] * f)
    report.frames = len(z) // group * image_frames(group, vae.time_factor) if group > 1 else 0
    with Watch(report, vae.host.tell, vae.device) as watch:
        run = Run(
            vae=vae, what="decode", x=z, out=z, write=lambda place, rows: vae.process_output(place.copy_(rows)),
            host=vae.host, dtype=vae.vae_dtype, budget=memory, watch=watch, progress=progress, group=group,
        )  # fmt: skip
        try:
            yield from FramesRun(run, clip=group).frames()
            return
        except UnsupportedModule as reason:  # known before anything has run
            report.method, report.reason = "untiled", str(reason)
    clips = z.unflatten(0, (-1, group)).transpose(1, 2) if vae.latent_dim == 3 else z
    for images in clips.split(1 if vae.latent_dim == 3 else group):
        made = vae.decode(images, memory=memory, progress=progress)
        yield made[0] if made.ndim == 5 else made


@dataclass(frozen=True, kw_only=True)
class PartRun(Run):
    """A run of a part of all that there is to do."""

    begin: float
    """The fraction that was done before."""
    share: float
    """The fraction that this part is."""

    def report(self, fraction: float) -> None:
        super().report(self.begin + self.share * fraction)


@dataclass
class FramesRun(ExactRun):
    """One call: the clips of `run.x`, one after the other. `run.out` is not filled, frames are given instead."""

    clip: int = field(kw_only=True)
    """Frames of latents of a clip."""
    at_once: int = field(default=PARTS[0], kw_only=True)
    """Frames of latents of a part at most."""
    _past: Past | None = field(default=None, init=False)
    _budget: int | None = field(default=None, init=False)
    _ways: dict[tuple[int, torch.dtype], Way] = field(default_factory=dict[tuple[int, torch.dtype], Way], init=False)
    """Those found: what is not free but allowed stays so."""

    def frames(self) -> Iterator[Tensor]:
        """Groups of finished frames (F, H, W, C), float32 0..1, in order."""
        self.all, self._budget, away = self.run, self.run.budget, 0.0
        self.decoder = coder_of(self.run.vae, "decode")
        if not self.run.load(self._way(ENDLESS if self._budget is None else self._budget).total.peak_bytes):
            self.decoder = coder_of(self.run.vae, "decode")
            self._ways.clear()
        try:
            for item in range(0, len(self.all.x), self.clip):
                for group in self._clip(item):
                    waiting, left = [group], time.perf_counter()
                    del group
                    yield waiting.pop()
                    away += time.perf_counter() - left
        finally:
            self._past = None
            self._slabs.close()
            self.all.watch.away += away

    def _clip(self, item: int) -> Iterator[Tensor]:
        """One clip. From its first part on again where it had to stop; what was given is not given again."""
        given = 0
        while True:
            way = self._way(self._budget)
            self.report.plan = self.all.vae.last_plan = way.total
            self._past = Past(self.run.dtype, way.past_device) if len(way.parts) > 1 else None
            made, stopped = 0, False
            for part in way.parts:
                finished = self._part(item, part, way)
                stopped = finished is None
                if finished is None:
                    break
                made += len(finished)
                new = finished[max(0, len(finished) - max(0, made - given)) :]
                given = max(given, made)
                del finished
                yield from self._groups(new, whole=len(way.parts) == 1)
                del new
            if not stopped:
                return

    def _groups(self, frames: Tensor, *, whole: bool) -> Iterator[Tensor]:
        """Those of a part are one; of a whole clip each is made of what waits when it is its turn."""
        if not whole:
            waiting = [frames]
            del frames
            yield waiting.pop()
            return
        step = max(1, self.at_once * self.all.vae.time_factor)
        for first in range(0, len(frames), step):
            yield self.all.vae.process_output(frames[first : first + step].to(torch.float32, copy=True))

    def _part(self, item: int, part: Part, way: Way) -> Tensor | None:
        """The frames of a part: finished, those of a whole clip as the decoder has them. None where it must stop."""
        base, plan, whole = self.all, way.plans[part.kind], len(way.parts) == 1
        program = self.decoder.program.continued if part.start else self.decoder.program
        assert program is not None
        self.coder, self._reached = replace(self.decoder, program=program), 0.0
        if self._past is not None:
            self._past.continues, self._past.turned = part.start > 0, plan.turned
        size = program.extent(base.x.shape[2], base.x.shape[3], part.latents)
        shape = (size.frames, size.height, size.width, base.vae.output_channels)
        dtype = self.run.dtype if whole else torch.float32
        with plain_output(shape, base.vae.output_device, dtype) as out:
            first = item + part.start
            self.run = PartRun(
                vae=base.vae, what="decode", x=base.x[first : first + part.latents], out=out.movedim(-1, 1),
                write=Tensor.copy_ if whole else base.write, host=base.host, dtype=self.run.dtype,
                budget=base.budget, watch=base.watch, progress=base.progress, group=part.latents,
                group_out=size.frames, begin=first / len(base.x), share=part.latents / len(base.x),
            )  # fmt: skip
            if not self._attempt(plan, 0):
                return self._take_less(way)
            return self._start_again() if self._nan and self._overflowed(plan) else out

    def _way(self, budget: int | None) -> Way:
        run, (channels, height, width) = self.run, self.run.x.shape[1:]
        shape = self.clip, channels, height, width
        known = None if budget is None else self._ways.get((budget, run.dtype))
        if known is not None:
            return known
        way = choose_way(run.host, self.decoder.program, shape, run.dtype, run.device, budget, self.at_once)
        if len(way.parts) == 1:  # the clip waits in main memory until it is done
            plan = way.total
            need = replace(plan.need, host_bytes=plan.host_bytes + plan.image_bytes // 4 * run.dtype.itemsize)
            way = way._replace(total=replace(plan, need=need))
        if budget is not None:
            self._ways[budget, run.dtype] = way
        return way

    def _take_less(self, way: Way) -> None:
        """From here on within three quarters of what ran out; MemoryBudgetError where nothing fits there."""
        needed = way.total.peak_bytes
        free = format_bytes(self.all.host.get_free_memory(self.all.device))
        self._past, self._budget = None, needed * 3 // 4
        try:
            less = self._way(self._budget).total.peak_bytes
        except MemoryBudgetError:
            less = None
        if less is None:  # outside of the block: one error, not two of which one led to the other
            raise MemoryBudgetError(
                f"decode: expected {format_bytes(needed)} of memory, ran out with {free} free: "
                "free memory or use a smaller image or fewer frames"
            )
        text = "decode: memory ran out with %s free on the way through a plan of %s: the clip starts again with %s"
        logger.warning(text, free, format_bytes(needed), format_bytes(less))

    def _overflowed(self, plan: Plan) -> bool:
        """Say where NaN came from; whether the number format is the cause, and the clip is to run in float32."""
        if self.run.dtype.itemsize > 2 or bool(self.run.x.isnan().any()):
            self._explain_nan(plan, 0)  # which then only says so
            return False
        return True

    def _start_again(self) -> None:
        """In float32; so do the clips behind this one."""
        name = str(self.run.dtype).removeprefix("torch.")
        self._warn(f"decode: NaN was born in the VAE in {name}: repeated in float32; load this VAE in float32")
        self.run = replace(self.run, dtype=torch.float32)
        self.report.dtype = self.report.repeated_in = "float32"

    def _context(self) -> Context:
        return replace(super()._context(), past=self._past)
