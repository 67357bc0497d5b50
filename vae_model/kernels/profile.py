"""What kinds of devices differ in, as far as the engine and its planner care: one record each, and nowhere else.

Numbers were measured where a sentence says so, else they are what the kind has room for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class DeviceProfile:
    """One kind of device. The defaults are those of a GPU that nothing more is known of."""

    strip_elements: int = 2**25
    """Elements of a strip that are worth having: enough for every kernel to fill a GPU."""
    work_per_byte: int = 3000
    """Operations in the time that one byte takes to host memory or back: computing again against spilling."""
    part_elements: int = 2**22
    """Of what is done value by value through float32, so many at a time."""
    slice_bytes: int = 64 * 2**20
    """Scores of attention at once, where no kernel keeps them to itself; more would be taken from what strips need."""
    work_between_checks: int | None = None
    """Operations of attention that cannot be stopped in its middle; None: a strip of queries is done soon enough."""
    trial_tokens: tuple[int, int] = (8192, 16384)
    """Queries and keys of the trial of attention's back ends: enough to fill a GPU."""
    channels_last: bool = False
    """Whether convolutions are known to run well, or best, with channels innermost."""
    fewer_multiplications: bool = False
    """Whether float32 convolutions may take fewer multiplications and more memory by the methods of this project."""
    streamed_attention: bool = False
    """Whether attention block by block is timed against the other back ends, and may be taken."""
    channel_moments: bool = False
    """Whether PyTorch has a kernel for the statistics of channels: 30 times as fast as var_mean, in memory order."""
    moment_pixels: int | None = None
    """Pixels that this kernel gets at once where it adds up value by value; None where it adds up in trees."""
    copy_streams: bool = False
    """Whether strips are copied to host memory and back beside the work, by streams and events of their own."""
    nccl: bool = False
    """Whether NCCL can send from it."""
    onednn: bool = False
    """Whether PyTorch has a second library for its float32 products."""
    large_attention: bool = False
    """Whether attention block by block takes large slices, with products of the inputs' own format."""
    moments_in_16_bits: bool = False
    """Whether it takes 16-bit values by itself; else they are summed as float32 copies."""


_GPU = DeviceProfile()
PROFILES = {
    "cpu": DeviceProfile(
        strip_elements=2**21,  # as many as caches like: 2^20 took 9 % longer, 2^22 no less
        work_per_byte=80,
        part_elements=2**18,  # as many as stay in a cache
        slice_bytes=4 * 2**20,  # the same
        work_between_checks=2**36,  # a tenth of a second on a fast CPU, seconds on a slow one
        trial_tokens=(1024, 4096),
        channels_last=True,
        fewer_multiplications=True,
        streamed_attention=True,
        channel_moments=True,
        moment_pixels=2048,
        onednn=True,
    ),
    "cuda": replace(
        _GPU,
        channels_last=True,
        streamed_attention=True,
        large_attention=True,
        channel_moments=True,
        moments_in_16_bits=True,
        copy_streams=True,
        nccl=True,
    ),
    "meta": replace(_GPU, channels_last=True, large_attention=True),
}
"""By the type of a torch.device. Tensors of "meta" have no values: they stand for a GPU's where plans are tried out."""


def profile_of(device_type: str) -> DeviceProfile:
    """That of a kind of device; of kinds without a row (mps, xpu, privateuseone) that of a GPU."""
    return PROFILES.get(device_type, _GPU)
