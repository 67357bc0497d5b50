"""Decoding over several ranks, each with its share of the rows: every rank plans for its own memory.

The ranks' plans may differ in strip heights and in what waits in main memory, but not in what is stored, for that
decides which passes there are: what one of them cannot store none of them does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, MemoryBudgetError
from ..exact.layer import UnsupportedModule
from ..exact.plan.plan import Plan
from ..exact.plan.search import make_plan
from ..exact.schedule import LevelSchedule
from ..exact.sharding.distributed import DistributedRanks
from ..exact.sharding.share import Share
from ..exact.stream.context import Context
from ..exact.stream.ranks import RankStopped
from ..families.first_frame import image_frames
from ..host import ENDLESS, Report, Watch
from .checks import check_latents, check_timesteps
from .clips import frames_of_latents
from .exact import ExactRun
from .run import Progress, Run, coder_of, dtype_of_results

logger = logging.getLogger(__name__)


def decode_sharded(
    vae: Any,
    samples: Tensor,
    ranks: DistributedRanks,
    memory: int | None = None,
    *,
    neighbours: int = 1,
    progress: Progress | None = None,
    timesteps: int | None = None,
) -> Tensor | None:
    """Latents to images by all ranks together; equal to `vae.decode(samples)` up to rounding.

    Args:    samples, timesteps: as for `VAE.decode`, the same on all ranks.
             memory: bytes for this rank's run above the weights, None for what is free.
             neighbours: ranks that share this rank's main memory.
    Returns: (B, h * f, w * f, C) float32 0..1 on rank 0, of clips (B, F, h * f, w * f, C), None on the others.
    Raises:  InputError for more ranks than rows of latent cells or latents that this VAE cannot take,
             MemoryBudgetError where the share of some rank does not fit, RankStopped where another rank failed.
    """
    with ranks.together():
        z, clip, keeps_axis = frames_of_latents(samples, vae.latent_dim == 3, vae.latent_channels)
        z = check_latents(z, vae.latent_channels)
        group = clip if clip > 1 else check_timesteps(timesteps, len(z), vae.is_temporal)
        share = Share(z.shape[2], ranks.rank, ranks.count)
        require_sharded(vae)
        _require_equal(ranks, [*z.shape, group, vae.vae_dtype.itemsize])
        f = vae.upscale_ratio
        rows = [(top * f, bottom * f) for top, bottom in map(share.bounds, range(ranks.count))]
        (top, bottom), height = rows[ranks.rank], z.shape[2] * f
        first = ranks.rank == 0
        made = image_frames(clip, vae.time_factor)
        shape = (len(z) // clip * made, height if first else bottom - top, z.shape[3] * f, vae.output_channels)
        out = torch.empty(
            shape, dtype=dtype_of_results(vae.vae_dtype), device=vae.output_device
        )  # plain: see `plain_output`

        report = vae.last_report = Report.of(vae, "decode", len(z), height, shape[2])
        report.frames = shape[0] if clip > 1 else 0
        with torch.inference_mode(), Watch(report, vae.host.tell, vae.device) as watch:
            run = Run(
                vae=vae,
                what="decode",
                x=z,
                out=out.movedim(-1, 1),  # rank 0 begins at row 0
                write=lambda place, part: vae.process_output(place.copy_(part)),
                host=vae.host,
                dtype=vae.vae_dtype,
                budget=memory,
                watch=watch,
                progress=progress,
                group=group,
                group_out=made if clip > 1 else None,
            )
            vae.last_plan = ShardedRun(run, share=share, ranks=ranks, neighbours=neighbours).items()
            ranks.collect(out[:, : bottom - top], out if first else None, rows)
        out = out.unflatten(0, (-1, made)) if keeps_axis else out
        return out if first else None


def require_sharded(vae: Any) -> None:
    """InputError, with the reason, for a VAE whose rows cannot be shared."""
    try:
        alone = sorted({op.name for op in coder_of(vae, "decode").program.ops if not op.shares_rows})
        if alone:
            raise UnsupportedModule(f"{', '.join(alone)}, which needs all rows")
    except UnsupportedModule as reason:
        raise InputError(
            f"shard: expected a decoder whose rows can be shared, got {reason}: leave out --shard"
        ) from None


def _require_equal(ranks: DistributedRanks, facts: list[int]) -> None:
    """InputError where ranks were given different work: they would wait for each other in vain."""
    for rank, other in enumerate(ranks.meet("start", facts)):
        if other != facts:
            raise InputError(
                f"shard: expected the same latents on all ranks, got {tuple(other[:4])} on rank {rank} "
                f"and {tuple(facts[:4])} on rank {ranks.rank}: give all of them the same file"
            )


@dataclass
class ShardedRun(ExactRun):
    """One rank's part of a run. What may go wrong on one rank alone is settled between all of them."""

    share: Share = field(kw_only=True)
    ranks: DistributedRanks = field(kw_only=True)
    neighbours: int = field(kw_only=True)
    """Ranks that share this rank's main memory."""

    def _plan(self, budget: int | None) -> Plan:
        if budget == ENDLESS:
            return self._make_plan(ENDLESS, 0)
        plan, error = self._try(budget, None)
        stored = -1 if plan is None else _stored(plan.schedule)
        others = [numbers[0] for numbers in self.ranks.meet("plan", [stored])]
        self._require_all([other >= 0 for other in others], error)
        for other in others:
            stored &= other
        plan, error = self._try(budget, stored)
        self._require_all([numbers[0] > 0 for numbers in self.ranks.meet("plan again", [int(plan is not None)])], error)
        assert plan is not None
        return plan

    def _try(self, budget: int | None, stored: int | None) -> tuple[Plan | None, MemoryBudgetError | None]:
        """A plan of this rank, or why there is none; `stored`: what all ranks store, None: as much as fits."""

        def allow(level: int, schedule: LevelSchedule) -> bool:
            return stored is None or _bits(schedule) == stored >> 4 * level & 15

        budgets = self.run.host.budgets(self.run.device, budget, self.neighbours)
        try:
            return self._make_plan(*budgets, allow), None
        except MemoryBudgetError as error:
            return None, error

    def _make_plan(
        self, device_budget: int, host_budget: int, allow: Callable[[int, LevelSchedule], bool] | None = None
    ) -> Plan:
        batch, channels, height, width = self._shape
        return make_plan(
            self.coder.program, (batch, channels, self.share.local(height), width), self.run.dtype,
            device_budget, host_budget,
            device_type=self.run.device.type, share=self.share, allow=allow, fused_attention=self._fused,
        )  # fmt: skip

    def _require_all(self, fits: list[bool], error: MemoryBudgetError | None) -> None:
        """The same kind of error on every rank, or none on any."""
        if all(fits):
            return
        if error is not None:
            raise MemoryBudgetError(f"rank {self.ranks.rank} of {self.ranks.count}: {error}", error.needed_bytes)
        raise MemoryBudgetError(
            f"rank {fits.index(False)} of {self.ranks.count} has too little memory: see what it said"
        )

    def _attempt(self, plan: Plan, item: int) -> bool:
        try:
            if super()._attempt(plan, item):
                # Whether one rank has seen NaN, all must know: they repeat the item together.
                self._nan = any(numbers[0] for numbers in self.ranks.meet("item", [int(self._nan)]))
                return True
        except RankStopped as stopped:
            if not stopped.out_of_memory:
                raise
        else:
            self.ranks.stop("out of memory", out_of_memory=True)
        self.run.host.soft_empty_cache()
        return False

    def _context(self) -> Context:
        return replace(super()._context(), share=self.share, ranks=self.ranks)


def _bits(schedule: LevelSchedule) -> int:
    stores = (schedule.store_hidden, schedule.store_enlarged, schedule.store_blocks, schedule.store_ends)
    return sum(flag << number for number, flag in enumerate(stores))


def _stored(schedules: tuple[LevelSchedule, ...]) -> int:
    """What all levels store, as bits."""
    return sum(_bits(schedule) << 4 * level for level, schedule in enumerate(schedules))
