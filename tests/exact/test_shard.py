"""Rows shared over ranks: the result of one process, by two, three and four of them; what they send; how they end.

Four processes are started once and run the cases of shard_ranks/cases.py in groups of two, three and four over gloo.
Tolerances are the project's, of the range: 1e-12 in float64 and 2e-5 in float32, for only the order of additions
differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_vae import load_vae
from exact_vae.__main__ import main
from exact_vae.tests.families.table import ROWS
from exact_vae.vae_model.files.latents import write_latent
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SIZES = (2, 3, 4)
FAMILY_RANKS = 3
ENGINE = [
    *("decoder, 5 rows", "decoder, 11 rows", "decoder, a row for each rank"),
    *("circular", "circular, a row for each rank", "reflect", "replicate", "attention in levels", "encoder"),
    *("tiny decoder", "tiny encoder", "tiny decoder with GroupNorm", "Flux.2 program", "linear attention"),
    "temporal",
]
BOOT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("exact_vae", sys.argv[1] + "/__init__.py",
                                              submodule_search_locations=[sys.argv[1]])
sys.modules["exact_vae"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["exact_vae"])
del sys.argv[1]
from exact_vae.tests.exact.shard_ranks.worker import main
main()
"""


@pytest.fixture(scope="session")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what the ranks answered: "<ranks>_<rank>.json" and "lost_<rank>.json"."""
    folder = tmp_path_factory.mktemp("ranks")
    started = [
        subprocess.Popen(
            [sys.executable, "-c", BOOT, str(ROOT), str(folder), str(rank)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )
        for rank in range(max(SIZES))
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    (folder / "errors.txt").write_bytes(b"\n".join(errors))
    return folder


def answer(folder: Path, case: str, ranks: int) -> list[dict[str, Any]]:
    """By rank."""
    found = []
    for rank in range(ranks):
        file = folder / f"{ranks}_{rank}.json"
        assert file.is_file(), (folder / "errors.txt").read_text(errors="replace")[-2000:]
        found.append(json.loads(file.read_text(encoding="utf-8")).get(case, {"broken": "never reached"}))
    assert [one["broken"] for one in found if "broken" in one] == []
    return found


by_ranks = pytest.mark.parametrize("ranks", SIZES)


@by_ranks
@pytest.mark.parametrize("case", ENGINE)
def test_every_rank_has_its_rows_of_the_result_of_one_process(answers: Path, case: str, ranks: int) -> None:
    for found in answer(answers, case, ranks):
        assert found["spread"] > 0.01  # a comparison of constants would show nothing
        assert found["difference"] <= 1e-12


def assert_decoded(found: list[dict[str, Any]]) -> None:
    """Rank 0 has the whole image, within float32's tolerance; nobody else has."""
    assert [one["whole"] for one in found] == [True, *[False] * (len(found) - 1)]
    assert found[0]["spread"] > 0.01
    assert found[0]["difference"] <= 2e-5


@pytest.mark.parametrize("family", ROWS)
def test_every_family_decodes_as_untiled(answers: Path, family: str) -> None:
    assert_decoded(answer(answers, family, FAMILY_RANKS))


@by_ranks
def test_clips_decode_as_untiled(answers: Path, ranks: int) -> None:
    assert_decoded(answer(answers, "clips", ranks))


@by_ranks
def test_the_bundled_vae_decodes_as_untiled(answers: Path, ranks: int) -> None:
    found = answer(answers, "bundled", ranks)
    assert_decoded(found)
    for rank, one in enumerate(found):
        rows = (rank + 1) * 9 // ranks - rank * 9 // ranks  # of 7 latent cells of 8 x 8 pixels, two images
        assert one["sent"]["output"] == (2 * rows * 8 * 7 * 8 * 3 * 4 if rank else 0)
        assert one["sent"]["attention"] == (ranks - 1) * 2 * 2 * rows * 7 * 128 * 4  # keys and values of 128 channels
        assert one["sent"]["halos"] > 0


@by_ranks
def test_statistics_take_less_than_50_kb_for_a_whole_decode(answers: Path, ranks: int) -> None:
    """30 norms of 32 groups: a count, means and M2s in float64, to every other rank."""
    found = answer(answers, "statistics", ranks)
    assert_decoded(found)
    for one in found:
        assert one["sent"]["statistics"] == (ranks - 1) * 30 * (1 + 2 * 32) * 8 < 50_000


@by_ranks
def test_every_rank_keeps_to_its_own_budget_and_none_stores_what_one_cannot(answers: Path, ranks: int) -> None:
    found = answer(answers, "little memory on one", ranks)
    assert_decoded(found)
    assert all(one["peak"] <= one["limit"] for one in found)
    assert found[0]["limit"] > 100 * found[-1]["limit"]
    assert [one["structure"] for one in found] == [found[-1]["structure"]] * ranks
    assert not all(map(all, found[-1]["structure"]))
    assert sum(one["rows"] for one in found) == 25


@by_ranks
def test_more_ranks_than_rows(answers: Path, ranks: int) -> None:
    text = (
        f"shard: expected at least one row of latent cells for each of {ranks} ranks, got {ranks - 1}: use fewer ranks"
    )
    for found in answer(answers, "more ranks than rows", ranks):
        assert (found["error"], found["text"]) == ("InputError", text)
        assert found["sent"] == [0, 0, 0, 0]  # but for the word that this rank stops


@by_ranks
def test_ranks_with_other_latents(answers: Path, ranks: int) -> None:
    for found in answer(answers, "other latents", ranks):
        assert found["error"] == "InputError"
        assert found["text"].startswith("shard: expected the same latents on all ranks, got (1, 3, 8, ")


@by_ranks
def test_too_little_memory_on_one_rank(answers: Path, ranks: int) -> None:
    found = answer(answers, "too little on one", ranks)
    assert {one["error"] for one in found} == {"MemoryBudgetError"}
    assert found[0]["text"] == f"rank 1 of {ranks} has too little memory: see what it said"
    assert found[1]["text"].startswith(f"rank 1 of {ranks}: ")
    assert "expected a budget of at least" in found[1]["text"]


@by_ranks
def test_a_cancelled_rank_stops_the_others_and_all_can_decode_again(answers: Path, ranks: int) -> None:
    found = answer(answers, "cancelled", ranks)
    line = f"shard: expected all {ranks} ranks to finish, rank 1 stopped: cancelled by the user"
    for rank, one in enumerate(found):
        assert one["text"] == ("cancelled by the user" if rank == 1 else line)
    assert_decoded([one["again"] for one in found])


@by_ranks
def test_when_one_rank_runs_out_of_memory_all_try_again_with_less(answers: Path, ranks: int) -> None:
    found = answer(answers, "out of memory", ranks)
    assert [one["error"] for one in found] == [None] * ranks
    assert_decoded([one["again"] for one in found])


@by_ranks
def test_ranks_that_fail_together_keep_their_own_errors(answers: Path, ranks: int) -> None:
    assert [one["text"] for one in answer(answers, "fails on all", ranks)] == [
        f"cancelled on {n}" for n in range(ranks)
    ]


@pytest.mark.parametrize("rank", [0, 2, 3])
def test_a_rank_that_dies_leaves_no_other_hanging(answers: Path, rank: int) -> None:
    found = json.loads((answers / f"lost_{rank}.json").read_text(encoding="utf-8"))
    assert found["error"] == "RankLost"
    assert found["text"].startswith(f"shard: expected 4 ranks to be there, rank {rank} lost them (")
    assert "\n" not in found["text"]
    assert found["seconds"] < 30  # gloo's own patience in these tests is twice that


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_decodes_as_one_process(tmp_path: Path) -> None:
    (tmp_path / "exact_vae").symlink_to(ROOT, target_is_directory=True)
    z = torch.randn(1, 16, 5, 6, generator=torch.Generator().manual_seed(0))
    write_latent(z, tmp_path / "z.safetensors")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "exact_vae", "decode", "--shard", "z.safetensors", "-o", "z.png", "--device", "cpu"]
    done = subprocess.run(
        [*torchrun, *command, "--dtype", "float32"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"rank {rank} of 2 sent: halos " in done.stdout
    assert done.stdout.count("statistics 5.67 KiB") == 2  # 22 norms of 16 groups, 33 numbers each
    image = load_vae("bundled", device="cpu", dtype="float32").decode(z)[0]
    with Image.open(tmp_path / "z.png") as picture:
        written = torch.from_numpy(np.asarray(picture, dtype=np.float32))
    # 2e-5 before rounding moves a value by one step of 255 at most.
    torch.testing.assert_close(written, image * 255, rtol=0, atol=0.51)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "shard: expected to be one of several processes, got a single one: start it with torchrun"),
        (["--method", "blend"], "method: expected exact with --shard, got 'blend': leave out one of the two"),
        (
            ["--device", "mps"],
            "device: expected auto, cpu or cuda with --shard, got 'mps': every rank takes its own GPU",
        ),
        (["--memory", "much"], "memory: expected an amount such as 2GiB, 800MiB or 2147483648, got 'much'"),
    ],
)
def test_the_command_refuses_before_any_work(
    options: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert main(["decode", "--shard", "z.safetensors", "-o", str(tmp_path / "z.png"), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"exact-vae: {text}")
