"""What the search for one level's schedule has come to."""

from __future__ import annotations

from .sizing import Sized


class Choice:
    """Filled by `search.py`, try by try."""

    def __init__(self) -> None:
        self.best: Sized | None = None
        self.failed: list[Sized] = []
        """What does not fit."""
        self.rejected: dict[str, str] = {}
        self.floors: dict[tuple[str, bool], float] = {}
        """By kind: the score that what was tried would have without copies, in strips of any height."""
        self.spans: dict[str, int] = {}
        """By name: bytes on the device that may wait in host memory instead."""
