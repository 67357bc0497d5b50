"""Processes that end wait for each other, whatever connects them, and not for ever."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from exact_vae.vae_model.exact.sharding.group import leave_together

PROCESSES = 3
SLOW_SECONDS = 0.5
WORKER = "from exact_vae.tests.exact.test_process_group import work; work()"


def work() -> None:
    """Two meetings where another rank is late each time, then one that the last rank does not come to."""
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    meeting = (folder / "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES)
    rounds: list[tuple[float, float]] = []
    for late in (0, 2):
        dist.barrier()
        if rank == late:
            time.sleep(SLOW_SECONDS)
        came = time.time()
        leave_together()
        rounds.append((came, time.time()))
    if rank < PROCESSES - 1:
        leave_together(timedelta(seconds=1))
    (folder / f"{rank}.json").write_text(json.dumps(rounds), encoding="utf-8")


def test_nobody_leaves_before_the_last_has_come(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in range(PROCESSES)
    ]
    said = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * PROCESSES, said
    rounds = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(PROCESSES)]
    for late, times in zip((0, 2), zip(*rounds, strict=True), strict=True):
        last = max(came for came, _ in times)
        assert last == times[late][0]
        assert all(left >= last for _, left in times)
        waited = max(left - came for came, left in times)
        assert waited >= SLOW_SECONDS * 0.9
    for rank in (0, 1):
        assert "expected 3 to end together" in said[rank]
    assert "expected 3" not in said[2]


def test_one_process_has_nobody_to_wait_for() -> None:
    assert not dist.is_initialized()
    leave_together()


def test_a_group_whose_store_is_gone_does_not_keep_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def add(self, name: str, amount: int) -> int:
            raise RuntimeError("Connection was likely closed")

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", Gone)
    leave_together()
