"""What the ranks must refuse together, and how they end when one of them fails. Cases as in `cases.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from exact_vae.tests.exact.shard_ranks.cases import Answer, Case, against_untiled, family, hard_input
from exact_vae.vae_model.errors import InputError, MemoryBudgetError
from exact_vae.vae_model.exact.sharding.distributed import DistributedRanks
from exact_vae.vae_model.exact.stream.ranks import RankStopped
from exact_vae.vae_model.runs.sharded import decode_sharded


def raised(call: Callable[[], object]) -> Answer:
    try:
        call()
    except (InputError, MemoryBudgetError, RankStopped, InterruptedError) as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"error": None}


def more_ranks_than_rows(ranks: DistributedRanks) -> Answer:
    vae = family("kl-f4")
    vae.host.load_model = None  # type: ignore[method-assign]  # nothing may be loaded
    before = ranks.traffic.numbers()
    answer = raised(lambda: decode_sharded(vae, torch.zeros(1, 3, ranks.count - 1, 8), ranks))
    return answer | {"sent": ranks.traffic.since(before)[:4]}


def other_latents(ranks: DistributedRanks) -> Answer:
    vae = family("kl-f4")
    return raised(lambda: decode_sharded(vae, torch.zeros(1, 3, 8, 8 + ranks.rank), ranks))


def too_little_on_one(ranks: DistributedRanks) -> Answer:
    vae = family("kl-f4")
    limit = 5_000 if ranks.rank == 1 else 2**30
    return raised(lambda: decode_sharded(vae, torch.zeros(1, 3, 8, 8), ranks, limit))


def fails_on_one(make: Callable[[], BaseException], *, times: int = 1) -> Case:
    """Rank 1 fails in the middle of a run; then everybody decodes once more, in step."""

    def case(ranks: DistributedRanks) -> Answer:
        vae = family("SD1, SD2, SDXL")
        host: Any = vae.host
        z, failed = hard_input(1, 4, 24, 16).float(), 0

        def fails(strip: int) -> BaseException | None:
            nonlocal failed
            if ranks.rank == 1 and strip % 20 == 0 and failed < times:
                failed += 1
                return make()
            return None

        host.fails = fails
        first = raised(lambda: decode_sharded(vae, z, ranks))
        failed = times
        return first | {"again": against_untiled(vae, z, ranks)}

    return case


def fails_on_all(ranks: DistributedRanks) -> Answer:
    """All at once: each rank keeps its own error."""
    vae = family("SD1, SD2, SDXL")
    host: Any = vae.host
    host.fails = lambda strip: InterruptedError(f"cancelled on {ranks.rank}") if strip == 5 else None
    return raised(lambda: decode_sharded(vae, hard_input(1, 4, 8, 6).float(), ranks))


FAILURES: dict[str, Case] = {
    "more ranks than rows": more_ranks_than_rows,
    "other latents": other_latents,
    "too little on one": too_little_on_one,
    "cancelled": fails_on_one(lambda: InterruptedError("cancelled by the user")),
    "out of memory": fails_on_one(lambda: MemoryError("no memory")),
    "fails on all": fails_on_all,
}
