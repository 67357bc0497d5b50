"""An injector of allocation failures for tests: it makes memory run out where a test wants it to, on any machine.

It watches the operations PyTorch dispatches, as the meter does, and raises PyTorch's own out-of-memory error. So code
that recovers from real failures can be tried on the CPU and on tensors without data, at every allocation it makes.
"""

from __future__ import annotations

from typing import Any

from ..benchmarks.meter import LiveTensorMeter
from ..model_management.oom import OOM_EXCEPTION


class AllocationFailures(LiveTensorMeter):
    """Counts the allocations inside the `with` block on one kind of device, and fails some of them.

    An allocation is an operation whose result brings at least one new storage. It fails after it ran: its result is
    freed before the error is raised, but its inputs live as long as somebody holds the error, as where frames of
    Python own them. Random numbers that the operation drew stay drawn.
    Everything the meter tells is told here, too (`current_bytes`, `peak_bytes`); failed allocations do not count in it.

        with AllocationFailures() as failures:
            decode(z)
        for k in range(1, failures.count + 1):
            with AllocationFailures(fail_at=k): ...

    Not seen: what the meter does not see, above all memory that a kernel takes within one operation and storages that
    grow in place; neither is counted as an allocation, but bytes grown into count against the limit of the next one.
    """

    def __init__(
        self,
        device_type: str = "cpu",
        *,
        fail_at: int | None = None,
        limit_bytes: int | None = None,
        once: bool = True,
    ) -> None:
        """Without `fail_at` and `limit_bytes` nothing fails; with both, each of them does its part.

        Args:    device_type: "cpu", "meta", "cuda", ...; tensors on other kinds of devices are let through.
                 fail_at: the number, from 1, of the allocation to fail; with `once` False all later ones fail, too.
                 limit_bytes: every allocation fails that would bring the live bytes made in the block above it.
        Raises:  ValueError for a number below 1 or a limit below 0.
        """
        if fail_at is not None and fail_at < 1:
            raise ValueError(f"fail_at: expected the number of an allocation, from 1, got {fail_at}: count from 1")
        if limit_bytes is not None and limit_bytes < 0:
            raise ValueError(f"limit_bytes: expected at least 0, got {limit_bytes}: make it larger")
        super().__init__(device_type)
        self._fail_at, self._limit_bytes, self._once = fail_at, limit_bytes, once
        self._count_seen = 0
        self._failed = 0

    @property
    def count(self) -> int:
        """Allocations seen so far, the failed ones among them."""
        return self._count_seen

    @property
    def failed(self) -> int:
        """How many of them failed."""
        return self._failed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        peak_bytes = self._peak_bytes
        result = func(*args, **(kwargs or {}))
        made = self._note(func, (args, kwargs), result)
        if not made:
            return result
        self._count_seen += 1
        reason = self._reason()
        if reason is None:
            return result
        self._failed += 1
        self._peak_bytes = peak_bytes
        # This frame stays in the error's traceback: what it names lives as long as somebody holds the error.
        del result
        raise OOM_EXCEPTION(f"injected failure: out of memory on {made} bytes, {reason}")

    def _reason(self) -> str | None:
        """Why the newest allocation fails; None if it does not."""
        fail_at, limit_bytes = self._fail_at, self._limit_bytes
        if fail_at is not None and (self._count_seen == fail_at or (not self._once and self._count_seen > fail_at)):
            return f"allocation {self._count_seen}"
        if limit_bytes is not None and self.current_bytes > limit_bytes:
            return f"above the limit of {limit_bytes} bytes"
        return None
