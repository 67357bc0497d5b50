"""One of four processes: all cases with two, then three, then four of them; answers go to files as JSON.

In the end one process dies in the middle of a run, and the others say how that ended for them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from exact_vae.tests.exact.shard_ranks.cases import DECODES, ENGINE, FAMILY_RANKS, OTHERS, family, hard_input
from exact_vae.tests.exact.shard_ranks.failures import FAILURES
from exact_vae.vae_model.exact.sharding.distributed import DistributedRanks
from exact_vae.vae_model.exact.stream.ranks import RankLost
from exact_vae.vae_model.runs.sharded import decode_sharded

SIZES = (2, 3, 4)
PROCESSES = 4


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(folder / "meeting").as_uri(),
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )
    for size in SIZES:
        group: Any = dist.new_group(list(range(size)))
        if rank < size:
            answers: dict[str, Any] = {}
            ranks = DistributedRanks(group)
            for name, case in (ENGINE | OTHERS | FAILURES | (DECODES if size == FAMILY_RANKS else {})).items():
                try:
                    answers[name] = case(ranks)
                except Exception as error:
                    answers[name] = {"broken": repr(error)}
                (folder / f"{size}_{rank}.json").write_text(json.dumps(answers), encoding="utf-8")
                if "broken" in answers[name]:
                    os._exit(1)  # the others wait for this rank: they see that it is gone, and the tests say why
    _die_in_the_middle(folder, rank)


def _die_in_the_middle(folder: Path, rank: int) -> None:
    vae = family("SD1, SD2, SDXL")
    host: Any = vae.host
    if rank == 1:
        host.fails = lambda strip: os._exit(3) if strip == 20 else None
    started = time.perf_counter()
    try:
        decode_sharded(vae, hard_input(1, 4, 8, 6).float(), DistributedRanks())
        answer = {"error": None}
    except RankLost as error:
        answer = {"error": "RankLost", "text": str(error), "seconds": time.perf_counter() - started}
    (folder / f"lost_{rank}.json").write_text(json.dumps(answer), encoding="utf-8")
    os._exit(0)
