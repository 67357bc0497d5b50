"""A plan: what a run will do and take, to be followed, printed or written as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...errors.bytesize import format_bytes
from ..schedule import LevelSchedule, Schedule
from .sizing import Need


@dataclass(frozen=True)
class LevelPlan:
    """One resolution level: its largest plane, its schedule, what that takes, and what was rejected and why."""

    height: int
    width: int
    channels: int
    schedule: LevelSchedule
    need: Need
    rejected: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """For inputs of one shape, dtype and device. Bytes are those on top of weights, input and finished output."""

    shape: tuple[int, int, int, int]
    """(B, C, H, W) of the input."""
    dtype: torch.dtype
    device_budget: int
    host_budget: int
    levels: tuple[LevelPlan, ...]
    need: Need
    untiled_work: int
    """Operations of the untiled run."""
    turned: bool = False
    """Whether it goes by columns: strips are so many of these, and rows are meant where columns are spoken of."""
    images: tuple[int, int, int, int] = (0, 0, 0, 0)
    """(B, H, W, C) of the larger of input and result, which are the images; of a clip B are its frames."""
    is_clip: bool = False
    early: Plan | None = None
    """Of a clip that is decoded, what it takes where its frames leave as they are finished, part by part."""
    past_bytes: int = 0
    """Of a clip that runs part by part, what stays from one to the next: part of what the device or the host needs."""

    @property
    def schedule(self) -> Schedule:
        """What the engine is given."""
        return tuple(level.schedule for level in self.levels)

    @property
    def peak_bytes(self) -> int:
        """Predicted device bytes at the worst moment."""
        return self.need.peak_bytes

    @property
    def work(self) -> int:
        """Predicted floating point operations."""
        return self.need.work

    @property
    def host_bytes(self) -> int:
        """Predicted host bytes of waiting strips at the worst moment."""
        return self.need.host_bytes

    @property
    def moved_bytes(self) -> int:
        """Predicted bytes copied between device and host."""
        return self.need.moved_bytes

    @property
    def image_bytes(self) -> int:
        """Bytes of the images in float32, which lie in main memory beside all else: finished ones, or those given."""
        return 4 * math.prod(self.images)

    @property
    def work_ratio(self) -> float:
        """Predicted operations relative to the untiled run's; below 1, as upsamples take 4/9 of the work."""
        return self.need.work / self.untiled_work

    @property
    def name(self) -> str:
        """The schedules that differ, from the first level to the last."""
        return ", ".join(dict.fromkeys(level.schedule.name for level in self.levels))

    def table(self) -> str:
        """For people: a line per level and the totals."""
        strips = "strip columns" if self.turned else "strip rows"
        rows = [("level", "plane", "schedule", strips, "on device", "device peak", "host", "moved")]
        for number, level in enumerate(self.levels):
            rows.append(
                (
                    str(number),
                    f"{level.width} x {level.height} x {level.channels}",
                    level.schedule.name,
                    str(level.schedule.strip_rows),
                    f"{level.schedule.device_share:.0%}",
                    format_bytes(level.need.peak_bytes),
                    format_bytes(level.need.host_bytes),
                    format_bytes(level.need.moved_bytes),
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        host = f", host memory {format_bytes(self.host_bytes)}" if self.host_bytes else ""
        lines.append(
            f"peak {format_bytes(self.peak_bytes)} of a budget of {format_bytes(self.device_budget)}{host}; "
            f"work {self.work_ratio:.2f} x untiled; {format_bytes(self.moved_bytes)} moved"
        )
        lines += self._clip_lines()
        for number, level in enumerate(self.levels):
            lines += [f"level {number} rejected: {reason}" for reason in level.rejected]
        return "\n".join(lines)

    def _clip_lines(self) -> list[str]:
        """What there is to say of a clip alone."""
        lines: list[str] = []
        if self.is_clip:
            frames, height, width, _ = self.images
            which = "clip given" if self.shape[2:] == (height, width) else "finished clip"
            which = "frames that leave at a time" if self.past_bytes else which
            size = format_bytes(self.image_bytes)
            lines.append(f"the {which}: {size} in main memory, {frames} frames of {width} x {height} in float32")
        if self.past_bytes:
            lines.append(f"{format_bytes(self.past_bytes)} stay from part to part: the last frames of every layer")
        if self.early is not None:
            early, host = self.early, self.early.host_bytes
            lines.append(
                f"or as frames leave, {early.images[0]} at a time: peak {format_bytes(early.peak_bytes)}"
                f"{f', host memory {format_bytes(host)}' if host else ''}, of which {format_bytes(early.past_bytes)} "
                f"stay from part to part; {format_bytes(early.image_bytes)} of finished frames"
            )
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For programs: everything as numbers and text."""
        return {
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device_budget": self.device_budget,
            "host_budget": self.host_budget,
            "peak_bytes": self.peak_bytes,
            "host_bytes": self.host_bytes,
            "moved_bytes": self.moved_bytes,
            "image_bytes": self.image_bytes,
            "past_bytes": self.past_bytes,
            "early": None if self.early is None else self.early.as_dict(),
            "turned": self.turned,
            "work_ratio": round(self.work_ratio, 4),
            "levels": [
                asdict(level) | {"schedule": asdict(level.schedule) | {"name": level.schedule.name}}
                for level in self.levels
            ],
        }

    def as_json(self) -> str:
        """`as_dict` as text."""
        return json.dumps(self.as_dict())
