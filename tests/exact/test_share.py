"""Which rows belong to which rank, what passes between them, how it is counted and planned: no process is started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.commands.shard import shard_device
from exact_vae.tests.families.table import ROWS, random_model
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.exact.extent import Extent
from exact_vae.vae_model.exact.memory.spill import Spill
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.plan.sizing import SMALL_TENSORS
from exact_vae.vae_model.exact.schedule import LevelSchedule
from exact_vae.vae_model.exact.sharding.share import WHOLE, Piece, Place, Share
from exact_vae.vae_model.exact.sharding.traffic import KINDS, Traffic, describe
from exact_vae.vae_model.exact.sharding.wire import (
    halo_rows,
    most,
    new_halo,
    new_message,
    pack,
    unpack,
)
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.moments import Moments
from exact_vae.vae_model.exact.stream.plane import Plane
from exact_vae.vae_model.exact.stream.ranks import OwnTokens, Tokens, block_rows, copy_rows
from exact_vae.vae_model.exact.stream.run import run_program
from exact_vae.vae_model.exact.stream.source import PlaneSource
from exact_vae.vae_model.families.table import decoder_of
from torch import Tensor

pytestmark = pytest.mark.usefixtures("inference")

CPU = torch.device("cpu")


# -- ranges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (5, 2), (5, 3), (5, 5), (64, 7), (129, 4)])
def test_every_row_has_one_owner_and_shares_differ_by_one_row(rows: int, count: int) -> None:
    shares = [Share(rows, rank, count) for rank in range(count)]
    bounds = [share.bounds(share.rank) for share in shares]
    assert (bounds[0][0], bounds[-1][1]) == (0, rows)
    assert all(above[1] == below[0] for above, below in pairwise(bounds))
    assert {share.own_rows for share in shares} <= {rows // count, rows // count + 1}
    for share, (top, _) in zip(shares, bounds, strict=True):
        for scale in (1, 2, 32):  # ranges double exactly with every enlargement
            assert share.local(rows * scale) == share.own_rows * scale
            assert share.place(share.own_rows * scale) == Place(top * scale, rows * scale)


def test_one_rank_has_everything() -> None:
    assert WHOLE.local(17) == 17
    assert WHOLE.place(17) == Place(0, 17)


def test_more_ranks_than_rows() -> None:
    with pytest.raises(
        InputError, match=r"^shard: expected at least one row of latent cells for each of 4 ranks, got 3"
    ):
        Share(3, 0, 4)


def test_pieces_of_neighbours() -> None:
    """Seven rows as 2, 2 and 3, at twice the resolution."""
    pieces = Share(7, 0, 3).pieces(2, [(0, 1), (2, 3), (1, 0)])
    assert pieces == [
        Piece(0, 1, 4, 0, 1),
        Piece(1, 0, -2, 2, 2),
        Piece(1, 2, 4, 0, 3),
        Piece(2, 1, -1, 3, 1),
    ]


def test_pieces_beyond_the_next_rank_and_round_the_ends() -> None:
    assert Share(4, 0, 4).pieces(1, [(0, 0), (0, 0), (0, 0), (3, 2)]) == [
        Piece(3, 0, -3, 0, 1),
        Piece(3, 1, -2, 0, 1),
        Piece(3, 2, -1, 0, 1),
        Piece(3, 0, 1, 0, 1),
        Piece(3, 1, 2, 0, 1),
    ]


@pytest.mark.parametrize("scale", [1, 3, 8])
@pytest.mark.parametrize(("rows", "count"), [(5, 2), (5, 3), (9, 4)])
def test_pieces_bring_the_rows_that_are_needed(rows: int, count: int, scale: int) -> None:
    """Against counting: row k needed by a rank is row (offset + k) of the image, going round."""
    share = Share(rows, 0, count)
    for reach in (1, 2, 3 * scale, rows * scale):
        seen: dict[int, list[int]] = {rank: [] for rank in range(count)}
        for piece in share.pieces(scale, [(reach, reach)] * count):
            offset, owner = share.bounds(piece.needs)[0] * scale, share.bounds(piece.has)
            for index in range(piece.rows):
                row = (offset + piece.row + index) % (rows * scale)
                assert row == owner[0] * scale + piece.start + index < owner[1] * scale
                seen[piece.needs].append(piece.row + index)
        for rank, found in seen.items():
            own = (share.bounds(rank)[1] - share.bounds(rank)[0]) * scale
            assert found == [*range(-reach, 0), *range(own, own + reach)]


# -- messages ----------------------------------------------------------------------------------------------------------


def filled_plane(context: Context, size: Extent, strip_rows: int, device_share: float = 1.0) -> tuple[Plane, Tensor]:
    plane = Plane(context, size, strip_rows, device_share)
    whole = torch.randn(context.batch, *size[:3], dtype=context.dtype, generator=torch.Generator().manual_seed(0))
    for index, top in enumerate(range(0, size.height, strip_rows)):
        plane.put(index, whole[:, :, top : top + strip_rows].contiguous(memory_format=context.memory_format))
    return plane, whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("device_share", [1.0, 0.5, 0.0])
def test_rows_of_several_planes_travel_in_one_message(dtype: torch.dtype, device_share: float) -> None:
    context = Context(2, dtype, CPU, spill=Spill(CPU))
    (a, all_a), (b, all_b) = (filled_plane(context, Extent(c, 10, 4), 3, device_share) for c in (3, 5))
    parcels = [(a, Piece(1, 0, -2, 8, 2)), (b, Piece(1, 0, -7, 1, 7)), (b, Piece(1, 0, -1, 9, 1))]
    message = pack(parcels)
    assert message.dtype == torch.uint8
    assert message.shape == new_message(parcels).shape
    assert message.numel() == (2 * a.row_bytes + 8 * b.row_bytes)
    expected = [all_a[:, :, 8:10], all_b[:, :, 1:8], all_b[:, :, 9:10]]
    for (rows, parcel), wanted, sent in zip(unpack(message, parcels), expected, parcels, strict=True):
        assert parcel == sent
        assert torch.equal(rows, wanted)


def test_copied_rows_come_from_wherever_they_wait() -> None:
    context = Context(1, torch.float32, CPU, spill=Spill(CPU))
    plane, whole = filled_plane(context, Extent(2, 11, 3), 4, 0.5)
    for top in range(11):
        for bottom in range(top + 1, 12):
            target = torch.empty(1, 2, bottom - top, 3)
            copy_rows(plane, top, bottom, target)
            assert torch.equal(target, whole[:, :, top:bottom])


def test_halo_rows_are_read_like_the_planes_own() -> None:
    share = Share(10, 1, 2)
    context = Context(1, torch.float32, CPU, share=share)
    plane, whole = filled_plane(context, Extent(2, 5, 3), 2)
    plane.beyond = new_halo(plane, (2, 3))
    around = torch.randn(1, 2, 10, 3, generator=torch.Generator().manual_seed(1))
    around[:, :, 2:7] = whole
    halo_rows(plane, Piece(1, 0, -2, 0, 2)).copy_(around[:, :, :2])
    halo_rows(plane, Piece(1, 0, 5, 0, 1)).copy_(around[:, :, 7:8])
    halo_rows(plane, Piece(1, 0, 6, 0, 2)).copy_(around[:, :, 8:])
    for consume in (False, True):
        rows = PlaneSource(plane, -2, 8, consume=consume)
        assert rows.reach == (2, 3)
        read = [piece for bottom in (-1, 1, 6, 8) for piece in rows.take(bottom)]
        assert torch.equal(torch.cat(read, dim=2), around)


def test_moments_merge_to_those_of_all_rows() -> None:
    """float64 against PyTorch's variance of the whole; a strong offset loses nothing."""
    x = torch.randn(2, 8, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 1e4
    parts: list[Moments] = []
    for rows in x.split([2, 3, 4], dim=2):
        parts.append(Moments(4))
        parts[-1].add(rows)
    numbers = [part.as_numbers() for part in parts]
    assert {len(each) for each in numbers} == {1 + 2 * 2 * 4}
    for part in parts:
        part.become_numbers(numbers)
    grouped = x.unflatten(1, (4, 2)).flatten(2)  # (B, G, values)
    for part in parts:
        assert part.mean is not None
        assert part.m2 is not None
        assert part.count == grouped.shape[2]
        torch.testing.assert_close(part.mean, grouped.mean(dim=2), rtol=1e-14, atol=0)
        torch.testing.assert_close(part.m2 / part.count, grouped.var(dim=2, correction=0), rtol=1e-9, atol=0)


def test_the_farthest_reach_counts() -> None:
    assert most([(0, 2), (1, 0), (0, 0)]) == (1, 2)


# -- traffic -----------------------------------------------------------------------------------------------------------


def test_traffic_is_counted_by_kind() -> None:
    traffic = Traffic()
    traffic.count("halos", 2048)
    before = traffic.numbers()
    traffic.count("statistics", 512)
    traffic.count("halos", 1024)
    assert traffic.sent == {"halos": 3072, "statistics": 512, "attention": 0, "output": 0, "control": 0}
    assert traffic.since(before) == [1024, 512, 0, 0, 0]
    line = describe(1, 3, dict(zip(KINDS, traffic.since(before), strict=True)))
    assert line == "rank 1 of 3 sent: halos 1.00 KiB, statistics 512 B, attention 0 B, output 0 B, control 0 B"


# -- planning ----------------------------------------------------------------------------------------------------------


class Pretended:
    """Other ranks that send whatever is asked for; the sizes are those of a run with them."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def exchange(self, readers: Sequence[PlaneSource]) -> None:
        for reader in readers:
            reader.plane.beyond = new_halo(reader.plane, reader.reach)
            for rows in reader.plane.beyond:
                rows.fill_(0.1)

    def merge(self, moments: Sequence[Moments]) -> None:
        pass

    def tokens(self, plane: Plane, own: OwnTokens, take: Callable[[Tokens], None]) -> None:
        share, width, step = plane.context.share, plane.size.width, block_rows(plane)
        scale = plane.size.height // share.own_rows
        for rank in range(share.count):
            offset, end = (row * scale for row in share.bounds(rank))
            for top in range(offset, end, step):
                bottom = min(end, top + step)
                if rank == self.rank:
                    own(top - offset, bottom - offset)
                    continue
                shape = (plane.context.batch, (bottom - top) * width, plane.size.channels)
                take(Tokens(top, bottom, torch.full(shape, 0.1), torch.full(shape, 0.1)))


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("budget", [1.0, 0.6])
def test_the_plan_of_a_share_is_what_its_run_takes(rank: int, budget: float) -> None:
    program: Any = decoder_of(random_model(ROWS["SD1, SD2, SDXL"])).program
    share = Share(29, rank, 3)
    shape = (1, 4, share.own_rows, 16)
    ample = make_plan(program, shape, torch.float32, 2**62, share=share, strip_rows=16)
    plan = make_plan(program, shape, torch.float32, int(budget * ample.peak_bytes), share=share, strip_rows=16)
    z = torch.randn(1, 4, 29, 16, generator=torch.Generator().manual_seed(0))
    with LiveTensorMeter() as meter:
        context = Context(1, torch.float32, CPU, share=share, ranks=Pretended(rank))
        run_program(program, plan.schedule, context, z, lambda top, rows: None)
    least = 0.85 * (plan.peak_bytes - SMALL_TENSORS)  # the project's bound for predictions
    assert least <= meter.peak_bytes <= plan.peak_bytes


def test_a_share_takes_its_part_of_the_work_and_all_keys_and_values() -> None:
    program = decoder_of(random_model(ROWS["SD1, SD2, SDXL"])).program
    whole = make_plan(program, (1, 4, 64, 32), torch.float32, 2**62)
    half = make_plan(program, (1, 4, 32, 32), torch.float32, 2**62, share=Share(64, 1, 2))
    alone = make_plan(program, (1, 4, 32, 32), torch.float32, 2**62)
    assert half.work * 2 == pytest.approx(whole.work, rel=1e-5)  # but for one row of a chain's halo
    assert alone.work < half.work  # attention over half of the rows alone
    assert alone.peak_bytes <= half.peak_bytes < whole.peak_bytes


def test_a_plan_can_be_held_to_what_may_be_stored() -> None:
    program = decoder_of(random_model(ROWS["SD1, SD2, SDXL"])).program

    def allow(level: int, schedule: LevelSchedule) -> bool:
        return level < 3 or not (schedule.store_hidden or schedule.store_enlarged)

    plan = make_plan(program, (1, 4, 16, 16), torch.float32, 2**62, allow=allow)
    assert [level.store_hidden for level in plan.schedule] == [True, True, True, False]


# -- devices -----------------------------------------------------------------------------------------------------------


def test_every_rank_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert shard_device("auto") == shard_device("cuda") == torch.device("cuda", 1)
    assert shard_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ValueError, match=r"^shard: expected a GPU for each of 2 processes, got 1: lower --nproc-per-node"
    ):
        shard_device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert shard_device("auto") == CPU
