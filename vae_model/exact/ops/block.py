"""A block that wants no statistics: nothing inside of it is stored, and its result as the schedule has it."""

from __future__ import annotations

from dataclasses import dataclass

from ..program import Op
from ..schedule import LevelSchedule
from .beside import Beside


@dataclass(frozen=True)
class Block(Beside):
    """ops(x) + shortcut(x), none of the ops with statistics."""

    def kept(self, schedule: LevelSchedule, following: Op, ends_level: bool) -> bool:
        wanted = following.groups is not None or following.twice
        return wanted or schedule.store_blocks or (ends_level and schedule.store_ends)

    def _stores(self, schedule: LevelSchedule) -> bool:
        return False
