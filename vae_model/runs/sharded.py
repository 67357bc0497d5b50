"""Decoding over several ranks, each with its share of the rows: every rank plans for its own memory.

The ranks' plans may differ in strip heights and in what waits in main memory, but not in what is stored, for that
decides which passes there are: what one of them cannot store none of them does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...model_management.budget import AMPLE, budgets
from ..errors import InputError, MemoryBudgetError
from ..exact.layer import UnsupportedModule
from ..exact.plan.plan import Plan
from ..exact.plan.search import make_plan
from ..exact.program import Program
from ..exact.schedule import LevelSchedule
from ..exact.sharding.distributed import DistributedRanks
from ..exact.sharding.share import Share
from ..exact.stream.context import Context
from ..exact.stream.ranks import RankStopped
from ..families.coder import Coder
from ..families.table import decoder_of
from ..host import Report, Watch
from ..vae import VAE
from .checks import check_latents, check_timesteps
from .exact import ExactRun
from .untiled import Progress, Run

logger = logging.getLogger(__name__)


def decode_sharded(
    vae: VAE,
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
    Returns: (B, h * f, w * f, C) float32 0..1 on rank 0, None on the others.
    Raises:  InputError for more ranks than rows of latent cells or latents that this VAE cannot take,
             MemoryBudgetError where the share of some rank does not fit, RankStopped where another rank failed.
    """
    with ranks.together():
        z = check_latents(samples, vae.latent_channels)
        group = check_timesteps(timesteps, len(z), vae.is_temporal)
        share = Share(z.shape[2], ranks.rank, ranks.count)
        require_sharded(vae)
        _require_equal(ranks, [*z.shape, group, vae.vae_dtype.itemsize])
        f = vae.upscale_ratio
        rows = [(top * f, bottom * f) for top, bottom in map(share.bounds, range(ranks.count))]
        (top, bottom), height = rows[ranks.rank], z.shape[2] * f
        first = ranks.rank == 0
        shape = (len(z), height if first else bottom - top, z.shape[3] * f, vae.output_channels)
        out = torch.empty(shape, dtype=torch.float32, device=vae.output_device)  # plain: see `plain_output`

        def put(item: int, row: int, part: Tensor) -> None:
            target = out[item : item + len(part), row : row + part.shape[2]]  # rank 0 begins at row 0
            vae.process_output(target.copy_(part.movedim(1, -1)))

        def load(memory_required: int) -> None:
            vae.host.load_model(vae.first_stage_model, vae.device, memory_required)

        run = Run("decode", vae.first_stage_model, load, vae.host, vae.device, vae.vae_dtype, memory, progress)
        dtype = str(vae.vae_dtype).removeprefix("torch.")
        report = vae.last_report = Report("decode", shape[2], height, len(z), dtype, str(vae.device))

        def make_half() -> Coder:
            return decoder_of(vae.first_stage_model)

        with torch.inference_mode(), Watch(report, vae.host.tell, vae.device) as watch:
            sharded = ShardedRun(
                run, make_half, None, put, watch, group, share=share, ranks=ranks, neighbours=neighbours
            )
            vae.last_plan = sharded.items(z)
            ranks.collect(out[:, : bottom - top], out if first else None, rows)
        return out if first else None


def require_sharded(vae: VAE) -> None:
    """InputError, with the reason, for a VAE whose rows cannot be shared."""
    try:
        program = decoder_of(vae.first_stage_model).program
        _require_shared_rows(program)
    except UnsupportedModule as reason:
        raise InputError(
            f"shard: expected a decoder whose rows can be shared, got {reason}: leave out --shard"
        ) from None


def _require_shared_rows(program: Program) -> None:
    alone = sorted({op.name for op in program.ops if not op.shares_rows})
    if alone:
        raise UnsupportedModule(f"{', '.join(alone)}, which needs all rows")


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

    def _plan(self, shape: tuple[int, int, int, int], limit: int | None, *, ample: bool = False) -> Plan:
        own = (*shape[:2], self.share.local(shape[2]), shape[3])
        if ample:
            return make_plan(
                self.half.program, own, self.run.dtype, AMPLE,
                device_type=self.run.device.type, share=self.share, fused_attention=self._fused,
            )  # fmt: skip
        plan, error = self._try(own, limit, None)
        stored = -1 if plan is None else _stored(plan.schedule)
        others = [numbers[0] for numbers in self.ranks.meet("plan", [stored])]
        self._require_all([other >= 0 for other in others], error)
        for other in others:
            stored &= other
        plan, error = self._try(own, limit, stored)
        self._require_all([numbers[0] > 0 for numbers in self.ranks.meet("plan again", [int(plan is not None)])], error)
        assert plan is not None
        return plan

    def _try(
        self, shape: tuple[int, int, int, int], limit: int | None, stored: int | None
    ) -> tuple[Plan | None, MemoryBudgetError | None]:
        """A plan of this rank, or why there is none; `stored`: what all ranks store, None: as much as fits."""
        run = self.run

        def allow(level: int, schedule: LevelSchedule) -> bool:
            return stored is None or _bits(schedule) == stored >> 3 * level & 7

        def free(device: torch.device) -> int:
            return run.host.get_free_memory(device) // (self.neighbours if device.type == "cpu" else 1)

        device_budget, host_budget = budgets(run.device, limit, free)
        try:
            plan = make_plan(
                self.half.program, shape, run.dtype, device_budget, host_budget,
                device_type=run.device.type, share=self.share, allow=allow,
                fused_attention=self._fused,
            )  # fmt: skip
        except MemoryBudgetError as error:
            return None, error
        return plan, None

    def _require_all(self, fits: list[bool], error: MemoryBudgetError | None) -> None:
        """The same kind of error on every rank, or none on any."""
        if all(fits):
            return
        if error is not None:
            raise MemoryBudgetError(f"rank {self.ranks.rank} of {self.ranks.count}: {error}", error.needed_bytes)
        raise MemoryBudgetError(
            f"rank {fits.index(False)} of {self.ranks.count} has too little memory: see what it said"
        )

    def _attempt(self, plan: Plan, x: Tensor, item: int) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            if super()._attempt(plan, x, item):
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
    return schedule.store_hidden | schedule.store_enlarged << 1 | schedule.store_blocks << 2


def _stored(schedules: tuple[LevelSchedule, ...]) -> int:
    """What all levels store, as bits."""
    return sum(_bits(schedule) << 3 * level for level, schedule in enumerate(schedules))
