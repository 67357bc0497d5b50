"""Messages between ranks as flat bytes: rows of several planes behind each other, and small parts of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..stream.plane import Plane
from ..stream.ranks import Beyond, copy_rows
from .share import Piece


def most(reaches: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Rows above and below that serve all readers of a plane."""
    return max(above for above, _ in reaches), max(below for _, below in reaches)


def halo_rows(plane: Plane, piece: Piece) -> Tensor:
    """Where the rows of a piece belong."""
    assert plane.beyond is not None
    return plane.beyond.rows(piece.row, piece.row + piece.rows, plane.size.height)


def new_halo(plane: Plane, reach: tuple[int, int]) -> Beyond:
    """Room for so many rows above and below."""
    above, below = (plane.context.strip(plane.size, rows) for rows in reach)
    return Beyond(above, below)


def size_of(plane: Plane, piece: Piece) -> int:
    """Bytes of a piece."""
    return piece.rows * plane.row_bytes


def new_message(parcels: Sequence[tuple[Plane, Piece]]) -> Tensor:
    """Room for some pieces."""
    device = parcels[0][0].context.device
    return torch.empty(sum(size_of(*parcel) for parcel in parcels), dtype=torch.uint8, device=device)


def unpack(message: Tensor, parcels: Sequence[tuple[Plane, Piece]]) -> Iterator[tuple[Tensor, tuple[Plane, Piece]]]:
    """The parts of a message as rows (B, C, n, W), channels innermost as they lie there."""
    start = 0
    for plane, piece in parcels:
        part = message[start : start + size_of(plane, piece)].view(plane.context.dtype)
        part = part.view(plane.images, piece.rows, plane.size.width, plane.size.channels)  # (B, n, W, C)
        yield part.permute(0, 3, 1, 2), (plane, piece)
        start += size_of(plane, piece)


def pack(parcels: Sequence[tuple[Plane, Piece]]) -> Tensor:
    """Own rows that another rank needs, as one message."""
    message = new_message(parcels)
    for rows, (plane, piece) in unpack(message, parcels):
        copy_rows(plane, piece.start, piece.start + piece.rows, rows)
    return message


def flat(x: Tensor) -> Tensor:
    """A contiguous tensor as bytes of the same memory."""
    return x.view(-1).view(torch.uint8)
