"""Which attention back end fits a call and is fast here, and running it so that no memory error is the end.

A VAE's attention is one head as wide as the channels (512 in most), over all positions of the latent at once. What
decides is whether a back end writes down all N x N scores. Sources for what PyTorch's kernels take:
aten/src/ATen/native/transformers (sdp_utils_cpp.h, cuda/sdp_utils.cpp, cuda/attention.cu) of PyTorch.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from statistics import median

import torch
from torch import Tensor

from ..vae_model.attention.backends import ATTENTION, set_choice
from ..vae_model.kernels.profile import profile_of
from .memory import get_free_memory, soft_empty_cache
from .oom import is_oom

# No operation may see a tensor of this many elements: kernels count with 32-bit integers.
_ELEMENT_LIMIT = 2**31
_FLASH_WIDTH = 256
# The scores, their softmax, and one more copy for a cast.
_SCORE_COPIES = 3
WORTH_TIMING = 8192
"""Keys from which on choosing matters more than the trial costs."""
_REPEATS = 3


@cache
def xformers_enabled_vae() -> bool:
    """Whether xformers is here, loads, is not 0.0.18 (its result is wrong for wide heads), and has CUDA under it."""
    if not torch.cuda.is_available():
        return False
    try:
        version: str = importlib.import_module("xformers").__version__
        importlib.import_module("xformers.ops")
    except (ImportError, OSError, AttributeError, RuntimeError):
        # Absent, or built for another PyTorch: it shows on import, in one of these ways.
        return False
    return version.split("+")[0] != "0.0.18"


def pytorch_attention_enabled() -> bool:
    """Whether PyTorch's own attention may be used: not on AMD, where ComfyUI saw it crash on large images."""
    return torch.version.hip is None


def choose_attention(
    tokens: int, width: int, dtype: torch.dtype, device: torch.device, free_bytes: int, batch: int = 1
) -> str:
    """The name in `vae_model.attention.ATTENTION` of the fastest back end that fits.

    Args:    tokens, width, batch, dtype: of q, k and v, each (B, N, C), with the last dimension dense in memory.
             free_bytes: what may be allocated on `device` beside q, k and v.
    """
    return _candidates(tokens, width, dtype, device, free_bytes, batch)[0]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    table: Mapping[str, Callable[..., Tensor]] = ATTENTION,
    check: Callable[[], None] = lambda: None,
    max_bytes: int | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(C)) v by the fastest back end that fits, and by ever smaller slices when memory runs out.

    From WORTH_TIMING keys on, those that fit have been timed against each other; not where a gradient is wanted: a
    training shall not depend on the clock, and the streamed back end has none.

    Args:    q: (B, n, C), k and v (B, N, C), one float dtype, one device.
             check: called now and then on the way; it may raise to stop.
             max_bytes: of scores at once, where they are written down; None for what fits into the free memory.
    Returns: (B, n, C), dtype and device of v.
    Raises:  the back end's own out-of-memory error once the scores of a single query do not fit.
    """
    # PyTorch's fused kernels want the channels next to each other; without it they give way to the N x N one.
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    batch, tokens, width = q.shape
    tokens = max(tokens, k.shape[1])
    free_bytes = get_free_memory(q.device)
    if max_bytes is not None and not is_fused(width, q.dtype, q.device):
        free_bytes = min(free_bytes, max_bytes)
    names = _candidates(tokens, width, q.dtype, q.device, free_bytes, batch)
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v))
    timed = table is ATTENTION and profile_of(q.device.type).streamed_attention and not learns
    if tokens >= WORTH_TIMING and timed:
        names = [*fastest_first((*names[:-1], "streamed"), width, q.dtype, q.device), names[-1]]
    for name in names[:-1]:
        result = _attempt(_stoppable(name, table, check), q, k, v, unsupported=True)
        if result is not None:
            return result
        soft_empty_cache()
    return _attend_sliced(table[names[-1]], q, k, v, max_bytes)


@cache
def fastest_first(names: tuple[str, ...], width: int, dtype: torch.dtype, device: torch.device) -> tuple[str, ...]:
    """`names` of the table of back ends, the fastest first; those that do not take the call come last."""
    return rank(names, ATTENTION, width, dtype, device)


def rank(
    names: tuple[str, ...],
    table: Mapping[str, Callable[..., Tensor]],
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[str, ...]:
    """Time every back end on a small call of the same kind, in turn, after a warm-up."""
    queries, keys = profile_of(device.type).trial_tokens
    q = torch.zeros((1, queries, width), dtype=dtype, device=device)
    k = torch.zeros((1, keys, width), dtype=dtype, device=device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(_REPEATS + 1):
        for name in names:
            try:
                started = time.perf_counter()
                table[name](q, k, k, max_bytes=None)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds[name].append(time.perf_counter() - started)
            except (RuntimeError, MemoryError, NotImplementedError) as error:
                if not isinstance(error, NotImplementedError) and not is_oom(error):
                    raise
                seconds[name].append(float("inf"))
    return tuple(sorted(names, key=lambda name: median(seconds[name][1:])))


def is_fused(width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether attention of one head of that width has a kernel here that never writes the N x N scores down."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return True  # a plan for another machine: nearly all of these have one
    if device.type == "cuda" and dtype != torch.float64 and xformers_enabled_vae():
        return True
    return pytorch_attention_enabled() and _has_fused_kernel(width, dtype, device)


def attend_by(name: str | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The back end of that name, slices where it does not take the call or memory runs out; None: as `attend`.

    What attention layers and the functions of `vae_model.attention` ask when they run on their own.
    """
    if name is None:
        return attend(q, k, v)
    if name != "sliced":
        result = _attempt(ATTENTION[name], q, k, v, unsupported=True)
        if result is not None:
            return result
        soft_empty_cache()
    return _attend_sliced(ATTENTION["sliced"], q, k, v)


set_choice(attend_by)


def _stoppable(
    name: str, table: Mapping[str, Callable[..., Tensor]], check: Callable[[], None]
) -> Callable[..., Tensor]:
    """A back end that looks for a cancel on the way: by itself, or between slices of its queries."""
    function = table[name]
    if table is ATTENTION and name == "streamed":
        return partial(function, check=check)

    def by_slices(q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None) -> Tensor:
        work = max(1, 4 * q.shape[0] * k.shape[1] * q.shape[2])  # of an empty batch there is none
        most = profile_of(q.device.type).work_between_checks
        rows = q.shape[1] if most is None else max(1, most // work)
        if rows >= q.shape[1]:
            return function(q, k, v, max_bytes=max_bytes)
        out = torch.empty((*q.shape[:2], v.shape[2]), dtype=v.dtype, device=v.device)
        for start in range(0, q.shape[1], rows):
            check()
            out[:, start : start + rows] = function(q[:, start : start + rows], k, v, max_bytes=max_bytes)
        return out

    return by_slices


def _candidates(
    tokens: int, width: int, dtype: torch.dtype, device: torch.device, free_bytes: int, batch: int
) -> list[str]:
    """The back ends worth a try, best first. The last is "sliced", which works everywhere."""
    names: list[str] = []
    if device.type == "cuda" and dtype != torch.float64 and xformers_enabled_vae():
        names.append("xformers")
    if pytorch_attention_enabled():
        fused = _has_fused_kernel(width, dtype, device)
        fits = _pytorch_bytes(tokens, width, dtype, batch, fused) <= free_bytes
        if fits and (fused or batch * tokens * tokens < _ELEMENT_LIMIT):
            names.append("pytorch")
    return [*names, "sliced"]


def _has_fused_kernel(width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether PyTorch has a kernel that never writes the N x N scores down."""
    if device.type == "cpu":
        return True
    if device.type != "cuda" or dtype == torch.float64:
        return False
    major = torch.cuda.get_device_capability(device)[0]
    if dtype == torch.bfloat16 and major < 8:
        return False
    sixteen_bit = dtype.itemsize == 2
    if sixteen_bit and major >= 8 and width <= _FLASH_WIDTH and torch.backends.cuda.flash_sdp_enabled():
        return True
    # The memory-efficient kernel reads 16 bytes at a time: 8 numbers of 16 bits or 4 of 32.
    return width % (8 if sixteen_bit else 4) == 0 and torch.backends.cuda.mem_efficient_sdp_enabled()


def _pytorch_bytes(tokens: int, width: int, dtype: torch.dtype, batch: int, fused: bool) -> int:
    """What PyTorch's attention allocates: the result, a float32 accumulator or float32 inputs, and maybe the scores."""
    wide = max(4, dtype.itemsize)  # 16-bit numbers are summed in float32.
    result_bytes = batch * tokens * width * dtype.itemsize
    if fused:
        return result_bytes + batch * tokens * (width + 1) * wide
    return result_bytes + 3 * batch * tokens * width * wide + _SCORE_COPIES * batch * tokens * tokens * wide


def _attempt(
    function: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    max_bytes: int | None = None,
    unsupported: bool = False,
) -> Tensor | None:
    """The result, or None when memory ran out or, if `unsupported` is expected, the back end does not take the call.

    Nothing of the error survives: its traceback would keep the failed operation's tensors in memory.
    """
    try:
        return function(q, k, v, max_bytes=max_bytes)
    except (RuntimeError, MemoryError) as error:
        if not is_oom(error) and not (unsupported and isinstance(error, NotImplementedError)):
            raise
    return None


def _attend_sliced(
    function: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, most_bytes: int | None = None
) -> Tensor:
    """Begin with a quarter of the free memory for scores and halve it until it works or one query is left.

    `most_bytes`: more than that is not begun with.
    """
    score_bytes = _SCORE_COPIES * max(4, q.dtype.itemsize)
    one_query_bytes = score_bytes * k.shape[1]
    max_bytes = min(get_free_memory(q.device) // 4, score_bytes * (_ELEMENT_LIMIT - 1))
    max_bytes = max_bytes if most_bytes is None else min(max_bytes, most_bytes)
    while max_bytes >= 2 * one_query_bytes:
        result = _attempt(function, q, k, v, max_bytes=max_bytes)
        if result is not None:
            return result
        soft_empty_cache()
        max_bytes //= 2
    return function(q, k, v, max_bytes=one_query_bytes)
