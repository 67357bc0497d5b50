"""What the search for one level's schedule has come to."""

from __future__ import annotations

from .sizing import Sized


class Choice:
    """Filled by `search.py`, try by try."""

    def __init__(self) -> None:
        self.best: Sized | None = None
        self.failed: list[Sized] = []
        """What does not fit."""
        self.floor = float("inf")
        """The least score that anything tried would have without copies."""
        self.rejected: dict[str, str] = {}
        self.judged: set[str] = set()
        """Names of what was tried, in strips of any height."""
