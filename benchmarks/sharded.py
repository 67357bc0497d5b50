"""One decode by one process against the same by several that share its rows, on the same CPU cores.

`python benchmarks/sharded.py --size 1024 --ranks 2` gives one process all cores and every rank its share of them, lets
both take turns after a warm-up, and prints median seconds, the worst difference, what each plans and what every rank
sent. All run on the same cores, so what is shown is the cost of sharing beside that of a process's own threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from case import CONFIG, random_input, random_model
from exact_vae import VAE, load_vae
from exact_vae.vae_model.exact.sharding.distributed import DistributedRanks
from exact_vae.vae_model.exact.sharding.group import leave_together
from exact_vae.vae_model.exact.sharding.traffic import KINDS
from exact_vae.vae_model.runs.sharded import decode_sharded
from measure import time_run


def main() -> None:
    """Start the ranks; rank 0 prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="side of the image in pixels")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = (options.size, options.ranks, options.repeats, folder)
        multiprocessing.spawn(run_rank, words, nprocs=options.ranks)  # pyright: ignore[reportPrivateImportUsage]


def run_rank(rank: int, size: int, count: int, repeats: int, folder: str) -> None:
    """Rounds of: rank 0 alone with all cores while the others wait, then all ranks together."""
    cores = len(os.sched_getaffinity(0))
    dist.init_process_group("gloo", init_method=(Path(folder) / "meeting").as_uri(), rank=rank, world_size=count)
    ranks, z = DistributedRanks(), random_input(CONFIG.embed_dim, size // CONFIG.factor, size // CONFIG.factor)
    vae = load_vae(random_model().state_dict(), device="cpu", dtype="float32")
    alone: list[float] = []
    together: list[float] = []
    image = shared = None
    plan_one = 0
    before = ranks.traffic.numbers()
    for _ in range(1 + repeats):
        torch.set_num_threads(cores)
        if rank == 0:
            image, seconds = time_run(lambda: vae.decode(z), vae.device)
            alone.append(seconds)
            plan_one = peak(vae)
        dist.barrier()
        torch.set_num_threads(max(1, cores // count))
        before = ranks.traffic.numbers()
        shared, seconds = time_run(lambda: decode_sharded(vae, z, ranks), vae.device)
        together.append(seconds)
        dist.barrier()
    rows: list[Any] = [None] * count
    dist.all_gather_object(rows, {"sent": ranks.traffic.since(before), "plan": peak(vae)})
    if rank == 0:
        assert image is not None
        assert shared is not None
        one, several = statistics.median(alone[1:]), statistics.median(together[1:])
        facts = {
            "size": size, "ranks": count, "cores": cores, "torch": torch.__version__,
            "seconds_one": one, "seconds_sharded": several, "ratio": several / one,
            "difference": float((image - shared).abs().max()), "plan_one": plan_one,
            "plans": [row["plan"] for row in rows],
            "sent": [dict(zip(KINDS, row["sent"], strict=True)) for row in rows],
        }  # fmt: skip
        print(json.dumps(facts, indent=1), flush=True)
    leave_together()
    dist.destroy_process_group()


def peak(vae: VAE) -> int:
    """Bytes that the last plan takes."""
    assert vae.last_plan is not None
    return vae.last_plan.peak_bytes


if __name__ == "__main__":
    main()
