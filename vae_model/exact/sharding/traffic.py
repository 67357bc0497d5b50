"""What a rank sends to the others, counted by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...errors.bytesize import format_bytes

KINDS = ("halos", "statistics", "attention", "output", "control")
"""Rows beyond a rank's own; moments of norms; keys and values; finished rows; where ranks meet before each of these."""


@dataclass
class Traffic:
    """Bytes sent by this rank: a message to three others counts three times, one that is received not at all."""

    sent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def count(self, kind: str, size: int) -> None:
        """So many bytes more."""
        self.sent[kind] += size

    def numbers(self) -> list[int]:
        """In the order of KINDS."""
        return [self.sent[kind] for kind in KINDS]

    def since(self, before: Sequence[int]) -> list[int]:
        """What was sent after `numbers` gave `before`."""
        return [now - then for now, then in zip(self.numbers(), before, strict=True)]


def describe(rank: int, count: int, sent: Mapping[str, int]) -> str:
    """One line for people."""
    amounts = ", ".join(f"{kind} {format_bytes(size)}" for kind, size in sent.items())
    return f"rank {rank} of {count} sent: {amounts}"
