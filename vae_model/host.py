"""Between a run and the program it runs in: what it asks of it, and what it tells about itself.

`model_management.host` implements `Host`; this file only names it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .errors.bytesize import format_bytes
from .exact.plan.plan import Plan
from .exact.program import Program

ENDLESS = 2**62
"""A budget that everything fits into."""


class Host(Protocol):
    """Devices, memory and attention of the surroundings. All sizes are bytes."""

    def load_model(self, model: nn.Module, device: torch.device, memory_required: int = 0) -> bool | None:
        """Put `model` on `device`; make room for it and for `memory_required` by unloading others, oldest use first.

        Returns: True where that only moved tensors. Else patches may have replaced layers or functions on the way, and
        whoever has read the model before must read it again.
        """
        ...

    def get_free_memory(self, device: torch.device) -> int:
        """Bytes that can be allocated on `device` now."""
        ...

    def soft_empty_cache(self) -> None:
        """Give cached but unused blocks back to the device."""
        ...

    def is_oom(self, error: BaseException) -> bool:
        """Whether `error` is some back end's way of saying that memory ran out."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None = None) -> Tensor:
        """Attention by the back end that fits here: (B, N, C) each -> (B, N, C).

        `max_bytes`: of scores at once, where they must be written down; None for what fits into the free memory.
        """
        ...

    def fused_attention(self, channels: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether one head of so many channels has a kernel there that writes no scores down."""
        ...

    def budgets(self, device: torch.device, budget: int | None, sharing: int = 1) -> tuple[int, int]:
        """Bytes that a plan may use on `device` and in main memory, for strips that wait there.

        `budget`: what the user allows on the device, None for what is free now. `sharing`: processes that share this
        machine's main memory.
        """
        ...

    def make_plan(
        self,
        program: Program,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        budget: int | None,
        strip_rows: int | None = None,
    ) -> Plan:
        """A plan for an input of `shape` (B, C, H, W) within `budgets(device, budget)`; ENDLESS fits everything.

        `strip_rows` fixes the height of strips. MemoryBudgetError where nothing fits.
        """
        ...

    def weights(self, layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a layer with the dtype and device of `like`; they stay as they are until released."""
        ...

    def check_interrupt(self) -> None:
        """Raise the host's own interruption when the user has cancelled."""
        ...

    def tell(self, report: Report, fraction: float, done: bool) -> None:
        """Show how far a run is, 0..1; `done`: it ended, one way or another. Called often and must never fail."""
        ...


@dataclass
class Report:
    """One decode or encode. Bytes are those above weights, input and finished output; None where they are not known."""

    what: str
    """"decode" or "encode"."""
    width: int
    height: int
    """Of the image, in pixels."""
    images: int
    dtype: str
    device: str
    exact: bool = True
    reason: str | None = None
    """Why the result is not exact, or why it took more memory than it should."""
    plan: Plan | None = None
    """What the run followed; None where the engine did not run."""
    method: str = "exact"
    peak_bytes: int | None = None
    """Measured, where the device counts what it allocates: CUDA."""
    seconds: float = 0.0
    repeated_in: str | None = None
    """The number format in which items were repeated that overflowed in the VAE's own."""
    warnings: list[str] = field(default_factory=list)
    frames: int = 0
    """Of clips, frames of images of all of them; 0 of pictures."""
    stopped: str | None = None
    """Why the run ended before it was done, in one line; None where it was not stopped."""

    @classmethod
    def of(cls, vae: Any, what: str, images: int, height: int, width: int, method: str = "exact") -> Report:
        """Of a run that begins, by a VAE of ours or of a host."""
        dtype = str(vae.vae_dtype).removeprefix("torch.")
        return cls(what, width, height, images, dtype, str(vae.device), exact=method != "blend", method=method)

    @property
    def schedule(self) -> str | None:
        """What the plan gives up for memory, in a word: "resident" is nothing."""
        if self.plan is None:
            return None
        names = " ".join(level.name for level in self.plan.schedule)
        found = [word for word in ("recompute", "spill") if word in names]
        return " + ".join(found) or "resident"

    @property
    def line(self) -> str:
        """For people, once the run is over."""
        head = "exact" if self.exact else "approximate" if self.method == "blend" else "host's own method"
        parts = [head, self.schedule or self.reason or self.method]
        if self.repeated_in is not None:
            parts.append(f"overflow, repeated in {self.repeated_in}")
        if self.peak_bytes is not None:
            parts.append(format_bytes(self.peak_bytes))
        elif self.plan is not None:
            parts.append(f"{format_bytes(self.plan.peak_bytes)} planned")
        if self.frames and self.seconds:
            parts.append(f"{self.frames} frames, {self.frames / self.seconds:.3g} frames/s")
        return " · ".join([*parts, f"{self.seconds:.1f} s"])

    def running_line(self, fraction: float) -> str:
        """For people, while the run lasts."""
        return " · ".join([self.method, *([self.schedule] if self.schedule else []), f"{fraction:.0%}"])

    @property
    def memory(self) -> dict[str, int | None]:
        """Bytes of the plan, by their names for programs, and what was measured."""
        plan = self.plan
        planned = (None, None, None) if plan is None else (plan.device_budget, plan.peak_bytes, plan.host_bytes)
        named = zip(("budget_bytes", "plan_bytes", "host_bytes"), planned, strict=True)
        return {**dict(named), "peak_bytes": self.peak_bytes}

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        names = ("line", "exact", "reason", "what", "width", "height", "images", "schedule", "dtype", "device")
        facts = {name: getattr(self, name) for name in names}
        more = {"frames": self.frames, "seconds": round(self.seconds, 3), "warnings": list(self.warnings)}
        return {**facts, **self.memory, **more}


class Watch:
    """Times and meters the run in the `with` block and tells how far it is; its end is told after an error, too."""

    def __init__(self, report: Report, tell: Callable[[Report, float, bool], None], device: torch.device) -> None:
        """`tell` gets (report, fraction done 0..1, whether that is the last call)."""
        self.report, self._tell, self._device = report, tell, device
        self._fraction = 0.0
        self.away = 0.0
        """Seconds that are not the run's: frames that were finished were with whoever wanted them."""

    def fraction(self, done: float) -> None:
        """So much is done, 0..1."""
        self._fraction = done
        self._tell(self.report, done, False)

    def __enter__(self) -> Watch:
        self._started = time.perf_counter()
        self._before = 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def loaded(self) -> None:
        """The weights are in place: what is allocated now is not the run's."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)

    def __exit__(self, *error: object) -> None:
        self.report.seconds = time.perf_counter() - self._started - self.away
        if self._device.type == "cuda":
            self.report.peak_bytes = max(0, torch.cuda.max_memory_allocated(self._device) - self._before)
        if isinstance(error[1], BaseException):
            name = type(error[1]).__name__  # the user's cancel comes without words, under a name that hosts choose
            word = "cancelled" if "Interrupt" in name else "closed early" if error[0] is GeneratorExit else name
            self.report.stopped = next(iter(str(error[1]).splitlines()), word)
        self._tell(self.report, 1.0 if error[0] is None else self._fraction, True)
