"""Time, memory and error of one run, and failures turned into text."""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from exact_vae.model_management.memory import soft_empty_cache
from exact_vae.model_management.oom import is_oom
from exact_vae.vae_model.evaluation.metrics import decibels
from meter import LiveTensorMeter
from torch import Tensor

T = TypeVar("T")


def attempt(action: Callable[[], T]) -> tuple[T | None, str | None]:
    """(result, None), or (None, why it failed) with the memory of the failed run given back."""
    try:
        with torch.inference_mode():
            return action(), None
    except Exception as error:  # Whatever a candidate does wrong is a result of the benchmark, not its end.
        failure = describe_failure(error)
    gc.collect()
    soft_empty_cache()
    return None, failure


def describe_failure(error: Exception) -> str:
    """One line; running out of memory is told apart from everything else."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return text or "out of memory"
    return "out of memory" if is_oom(error) else f"{type(error).__name__}: {text}"[:160]


def time_run(run: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """(result, seconds): CUDA events on a GPU, the clock elsewhere."""
    if device.type != "cuda":
        started = time.perf_counter()
        result = run()
        return result, time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    result = run()
    end.record()
    torch.cuda.synchronize(device)
    return result, start.elapsed_time(end) / 1000


def metered_run(run: Callable[[], T], device: torch.device) -> tuple[T, int]:
    """(result, peak bytes of what the run allocated on the device, its result included). Not for timing."""
    if device.type != "cuda":
        with LiveTensorMeter(device.type) as meter:
            result = run()
        return result, meter.peak_bytes
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = run()
    torch.cuda.synchronize(device)
    return result, torch.cuda.max_memory_allocated(device) - before


def memory_meter(device: torch.device) -> str:
    """What `metered_run` reads, for the report."""
    if device.type == "cuda":
        return "torch.cuda.max_memory_allocated minus what was allocated before"
    return "live tensors (LiveTensorMeter; memory inside single operations is not seen)"


def peak_resident_bytes() -> int | None:
    """The most main memory this process ever had, weights and all; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def median(seconds: Sequence[float]) -> float | None:
    """None for no run at all."""
    return statistics.median(seconds) if seconds else None


def ratio(value: float | None, base: float | None) -> float | None:
    """value / base, None where one of them is missing, the base is 0 or the result is no number."""
    return None if value is None or not base else _number(value / base)


def _number(value: float) -> float | None:
    """None for what JSON cannot hold."""
    return value if math.isfinite(value) else None


def compare(result: Tensor, reference: Tensor) -> dict[str, float | None]:
    """Worst difference as a share of the reference's range, and PSNR over that range (None for equal results)."""
    result, reference = result.detach().cpu().double(), reference.detach().cpu().double()
    span, worst = float(reference.max() - reference.min()), float((result - reference).abs_().max())
    return {"max_error": ratio(worst, span), "psnr": _number(float(decibels(result[None], reference[None], span)))}


def mean_error(result: Tensor, reference: Tensor) -> float | None:
    """Mean absolute difference."""
    return _number(float((result.detach().cpu().double() - reference.detach().cpu().double()).abs().mean()))


def errors(result: Tensor, untiled: Tensor | None, exact: Tensor | None) -> dict[str, Any]:
    """All error figures of one result; None for those without a reference.

    Args:    untiled: our module's untiled result in the same dtype. exact: the float64 run of the same weights.
    """
    figures: dict[str, Any] = {"max_error": None, "psnr": None, "error64": None, "error64_ratio": None}
    figures["finite"] = bool(torch.isfinite(result).all())
    if untiled is not None:
        figures |= compare(result, untiled)
    if exact is not None:
        figures["error64"] = mean_error(result, exact)
        figures["error64_ratio"] = ratio(figures["error64"], None if untiled is None else mean_error(untiled, exact))
    return figures
