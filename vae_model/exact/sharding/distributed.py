"""Ranks that share an image's rows, over `torch.distributed`: gloo between main memories, NCCL between GPUs.

Before every exchange all ranks meet with a few numbers each. A rank that has stopped, for whatever reason, comes to the
next meeting and says so; then all others stop there too, and all of them are ready for the next run. A rank that is
gone without a word closes its connections, which ends the others as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...kernels.profile import profile_of
from ..stream.moments import Gathered
from ..stream.plane import Plane
from ..stream.ranks import OwnTokens, RankLost, RankStopped, Tokens, block_rows, copy_rows
from ..stream.source import PlaneSource
from .group import leave_together
from .share import Piece
from .traffic import Traffic
from .wire import flat, halo_rows, most, new_halo, new_message, pack, unpack

_NUMBERS = 9
"""What a rank can say when they meet; a pass reads four planes at most."""
_TEXT_BYTES = 480
_OUTPUT_ELEMENTS = 2**22
"""Finished values in one message."""
_GOING, _STOPPED, _OUT_OF_MEMORY = 0, 1, 2
_MEETINGS = ("plan", "plan again", "halos", "statistics", "attention", "item", "output", "start", "traffic")


class DistributedRanks:
    """All ranks of a process group; the same calls in the same order on each of them."""

    def __init__(self, group: Any = None, *, on_device: bool = False) -> None:
        """`on_device`: the group's back end sends from the device, else everything goes through main memory."""
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        self.traffic = Traffic()
        self._group, self._on_device = group, on_device

    # -- meeting -----------------------------------------------------------------------------------------------------

    def meet(self, what: str, numbers: Sequence[int] = ()) -> list[list[int]]:
        """Everybody's numbers, by rank. RankStopped where one of them has stopped."""
        heard = self._hear(_GOING, what, numbers)
        self._stop_with(heard, "")
        kinds = {_MEETINGS[row[1]] for row in heard}
        if len(kinds) > 1:
            raise RuntimeError(f"ranks: expected all of them at {what}, got {', '.join(sorted(kinds))}")
        return [row[2 : 2 + len(numbers)] for row in heard]

    def stop(self, reason: str, *, out_of_memory: bool = False) -> None:
        """Tell the others, at the next meeting, that this rank cannot go on; all ranks are in step again behind it.

        RankStopped where this rank only ran out of memory and another one has stopped for good.
        """
        self._stop_with(self._hear(_OUT_OF_MEMORY if out_of_memory else _STOPPED, "item", ()), reason)

    @contextmanager
    def together(self) -> Generator[None]:
        """What fails in the block on one rank ends the block on all of them."""
        try:
            yield
        except (RankStopped, RankLost):
            raise
        except Exception as error:
            lines = str(error).splitlines()
            self.stop(lines[0] if lines else type(error).__name__)
            raise

    def _hear(self, status: int, what: str, numbers: Sequence[int]) -> list[list[int]]:
        message = [status, _MEETINGS.index(what), *numbers, *[0] * (_NUMBERS - len(numbers))]
        return [part.tolist() for part in self._gather("control", torch.tensor(message))]

    def _stop_with(self, heard: list[list[int]], reason: str) -> None:
        stopped = {rank: row[0] for rank, row in enumerate(heard) if row[0] != _GOING}
        if not stopped:
            return
        text = reason.encode()[:_TEXT_BYTES]
        message = torch.zeros(_TEXT_BYTES, dtype=torch.uint8)
        message[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        reasons = [
            bytes(part.tolist()).rstrip(b"\0").decode(errors="ignore") for part in self._gather("control", message)
        ]
        first = next((rank for rank, status in stopped.items() if status == _STOPPED), min(stopped))
        mine = heard[self.rank][0]
        if mine == _STOPPED or (mine == _OUT_OF_MEMORY and stopped[first] == _OUT_OF_MEMORY):
            return
        raise RankStopped(
            f"shard: expected all {self.count} ranks to finish, rank {first} stopped: {reasons[first]}",
            stopped[first] == _OUT_OF_MEMORY,
        )

    # -- what the engine asks ----------------------------------------------------------------------------------------

    def exchange(self, readers: Sequence[PlaneSource]) -> None:
        """Give every plane the rows beyond its own; one message at most from each rank to each other."""
        planes = list({id(reader.plane): reader.plane for reader in readers}.values())
        wanted = [most([reader.reach for reader in readers if reader.plane is plane]) for plane in planes]
        everyone = self.meet("halos", [number for rows in wanted for number in rows])
        with self._connected():
            parcels: list[tuple[Plane, Piece]] = []
            for index, plane in enumerate(planes):
                plane.beyond = new_halo(plane, wanted[index])
                scale = plane.size.height // plane.context.share.own_rows
                needs = [(numbers[2 * index], numbers[2 * index + 1]) for numbers in everyone]
                parcels += [(plane, piece) for piece in plane.context.share.pieces(scale, needs)]
            self._deliver(parcels)

    def _deliver(self, parcels: list[tuple[Plane, Piece]]) -> None:
        outgoing: dict[int, Tensor] = {}
        incoming: dict[int, Tensor] = {}
        coming: dict[int, list[tuple[Plane, Piece]]] = {}
        for peer in range(self.count):
            leaving = [parcel for parcel in parcels if parcel[1].has == self.rank and parcel[1].needs == peer]
            coming[peer] = [parcel for parcel in parcels if parcel[1].has == peer and parcel[1].needs == self.rank]
            if peer == self.rank:
                for plane, piece in leaving:
                    copy_rows(plane, piece.start, piece.start + piece.rows, halo_rows(plane, piece))
                continue
            if leaving:
                outgoing[peer] = pack(leaving)
            if coming[peer]:
                incoming[peer] = new_message(coming[peer])
        self._swap(outgoing, incoming, "halos")
        for peer, message in incoming.items():
            for rows, (plane, piece) in unpack(message, coming[peer]):
                halo_rows(plane, piece).copy_(rows)

    def merge(self, moments: Sequence[Gathered]) -> None:
        """Everybody's numbers (of moments count, mean and M2) to everybody, merged in the same order on every rank."""
        if not moments:
            return
        self.meet("statistics")
        with self._connected():
            own = [part.as_numbers() for part in moments]
            everyone = self._gather("statistics", torch.cat(own))
            sizes = [len(numbers) for numbers in own]
            by_rank = [message.split(sizes) for message in everyone]
            for index, part in enumerate(moments):
                part.become_numbers([parts[index] for parts in by_rank])

    def tokens(self, plane: Plane, own: OwnTokens, take: Callable[[Tokens], None]) -> None:
        """Rank after rank sends its keys and values to all others, block by block."""
        self.meet("attention")
        share, width, step = plane.context.share, plane.size.width, block_rows(plane)
        scale = plane.size.height // share.own_rows
        like = torch.empty(0, dtype=plane.context.dtype, device=plane.context.device)
        with self._connected():
            for rank in range(self.count):
                offset, end = (row * scale for row in share.bounds(rank))
                for top in range(offset, end, step):
                    bottom = min(end, top + step)
                    if rank == self.rank:
                        for part in own(top - offset, bottom - offset):
                            self._broadcast(part.contiguous(), rank)
                        continue
                    shape = (plane.images, (bottom - top) * width, plane.size.channels)
                    keys, values = (self._broadcast(like.new_empty(shape), rank) for _ in range(2))
                    take(Tokens(top, bottom, keys, values))

    # -- around a run ------------------------------------------------------------------------------------------------

    def collect(self, own: Tensor, out: Tensor | None, rows: Sequence[tuple[int, int]]) -> None:
        """Finished rows to rank 0, item by item, some rows at a time.

        Args:    own: (B, n, W, C) of this rank. out: (B, H, W, C) on rank 0, with its own rows in place; else None.
                 rows: first and last but one row of every rank.
        """
        self.meet("output")
        step = max(1, _OUTPUT_ELEMENTS // own[0, 0].numel())
        with self._connected():
            for rank in range(1, self.count) if self.rank == 0 else [self.rank]:
                top, bottom = rows[rank]
                for item in range(len(own)):
                    for start in range(top, bottom, step):
                        stop = min(bottom, start + step)
                        if out is None:
                            part = own[item, start - top : stop - top].contiguous()
                            self._swap({0: flat(part)}, {}, "output")
                        else:
                            part = own.new_empty((stop - start, *own.shape[2:]))
                            self._swap({}, {rank: flat(part)}, "output")
                            out[item, start:stop] = part

    # -- the wire ----------------------------------------------------------------------------------------------------

    def _gather(self, kind: str, own: Tensor) -> list[Tensor]:
        """Small tensors in main memory, by rank."""
        parts = [torch.empty_like(own) for _ in range(self.count)]
        with self._connected():
            dist.all_gather(parts, own, group=self._group)
        self.traffic.count(kind, (self.count - 1) * own.numel() * own.dtype.itemsize)
        return parts

    def _swap(self, outgoing: dict[int, Tensor], incoming: dict[int, Tensor], kind: str) -> None:
        """Messages of bytes by the rank they go to and come from."""
        into = {peer: self._on_wire(message) for peer, message in incoming.items()}
        operations = [
            dist.P2POp(dist.isend, self._on_wire(message), self._global(peer), self._group)
            for peer, message in outgoing.items()
        ]
        operations += [
            dist.P2POp(dist.irecv, message, self._global(peer), self._group) for peer, message in into.items()
        ]
        if operations:
            for work in dist.batch_isend_irecv(operations):
                work.wait()
        for peer, message in incoming.items():
            if into[peer] is not message:
                message.copy_(into[peer])
        self.traffic.count(kind, sum(message.numel() for message in outgoing.values()))

    def _broadcast(self, x: Tensor, rank: int) -> Tensor:
        """A contiguous tensor of one rank to all others."""
        message = self._on_wire(flat(x))
        dist.broadcast(message, self._global(rank), group=self._group)
        if rank == self.rank:
            self.traffic.count("attention", (self.count - 1) * message.numel())
        elif message.device != x.device:
            flat(x).copy_(message)
        return x

    @contextmanager
    def _connected(self) -> Generator[None]:
        """While messages are under way a rank can no longer say that it stops: what fails here ends all of them."""
        try:
            yield
        except RankLost:
            raise
        except Exception as error:
            reason = re.sub(r"^\[[^]]*\] *", "", (str(error).splitlines() or [type(error).__name__])[0]).split(". ")[0]
            raise RankLost(
                f"shard: expected {self.count} ranks to be there, rank {self.rank} lost them ({reason}): "
                "see what the others said"
            ) from error

    def _on_wire(self, message: Tensor) -> Tensor:
        return message if self._on_device else message.cpu()

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)


@contextmanager
def connect(device: torch.device) -> Generator[DistributedRanks]:
    """The ranks that torchrun started, for as long as the block lasts. On GPUs NCCL is used where it is there.

    Raises:  ValueError where this process was not started by torchrun, or PyTorch has no distributed back end.
    """
    if not dist.is_available():
        raise ValueError("shard: expected a PyTorch with torch.distributed, got one without: install another build")
    if not launched():
        raise ValueError(
            "shard: expected to be one of several processes, got a single one: "
            "start it with torchrun --nproc-per-node 2 -m exact_vae decode --shard ..."
        )
    on_device = profile_of(device.type).nccl and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_device else "gloo", timeout=timedelta(hours=2))
    if on_device:
        torch.cuda.set_device(device)
        dist.all_reduce(torch.zeros(1, device=device))  # NCCL wants everybody at its first message
    yield DistributedRanks(on_device=on_device)
    leave_together()
    dist.destroy_process_group()


def launched() -> bool:
    """Whether torchrun has told this process who and where the others are."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def local_rank() -> tuple[int, int]:
    """This process among those of this machine, and how many they are."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
