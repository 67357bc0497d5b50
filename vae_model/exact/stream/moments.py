"""Group statistics of a plane, merged over its strips.

Chan, Golub and LeVeque's pairwise rule (1979): count, mean and the sum of squared deviations (M2) of two parts give
those of the whole without ever subtracting large squares, so images with a strong offset lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...kernels.cpu import strips as native_strips
from ...kernels.cuda.strips import add_moments, can_add_moments
from ...kernels.profile import profile_of

CHUNK_ELEMENTS = 2**20
"""16-bit strips are summed in float32, so many elements at a time, where the kernel does not do it by itself."""


class Gathered(Protocol):
    """What a pass gathers of the rows that go by, of all of them together."""

    def add(self, rows: Tensor) -> None:
        """Take in rows (B, C, n, W), which nobody else holds."""
        ...

    def add_bytes(self, elements: int, itemsize: int) -> int:
        """Device bytes beside the rows while so many values are taken in, and of what is gathered."""
        ...

    def as_numbers(self) -> Tensor:
        """What was gathered of own rows, float64 in main memory."""
        ...

    def become_numbers(self, by_rank: Sequence[Tensor]) -> None:
        """Be that of all ranks' rows instead."""
        ...


class Moments:
    """Count, mean and M2 per (image, group), float64 where there is float64. Rows may come in any order, once each."""

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.count = 0
        self.mean: Tensor | None = None
        self.m2: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Take in rows (B, C, n, W) with the values that are stored."""
        if can_add_moments(rows):
            if self.mean is None or self.m2 is None:
                shape = (rows.shape[0], self.groups)
                self.mean, self.m2 = (torch.zeros(shape, dtype=torch.float64, device=rows.device) for _ in range(2))
            self.count = add_moments(rows, self.count, self.mean, self.m2)
            return
        for part in _parts(rows):
            mean, variance = channel_moments(part)  # (B, C)
            count = part.shape[2] * part.shape[3]
            group_mean, group_m2 = _merge_channels(mean, variance * count, count, self.groups)
            self._merge(count * (part.shape[1] // self.groups), group_mean, group_m2)

    def _merge(self, count: int, mean: Tensor, m2: Tensor) -> None:
        if self.mean is None or self.m2 is None:
            self.count, self.mean, self.m2 = count, mean, m2
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.m2 = self.m2 + m2 + delta.square() * (self.count * (count / total))
        self.count = total

    def add_bytes(self, elements: int, itemsize: int) -> int:
        """Of the copies of 16-bit values."""
        return 4 * min(CHUNK_ELEMENTS, elements) if itemsize <= 2 else 0

    def as_numbers(self) -> Tensor:
        """Count, means and M2s of own rows: 1 + 2 * B * G float64 in main memory."""
        assert self.mean is not None and self.m2 is not None  # noqa: PT018  # every rank has rows
        numbers = [part.flatten().cpu().double() for part in (self.mean, self.m2)]
        return torch.cat([torch.tensor([float(self.count)], dtype=torch.float64), *numbers])

    def become_numbers(self, by_rank: Sequence[Tensor]) -> None:
        """Be those of all ranks' rows."""
        assert self.mean is not None
        shape, like = self.mean.shape, self.mean
        pairs = [(int(numbers[0]), numbers[1:].view(2, *shape).to(like)) for numbers in by_rank]
        self.become((count, both[0], both[1]) for count, both in pairs)

    def become(self, parts: Iterable[tuple[int, Tensor, Tensor]]) -> None:
        """Those of all parts (count, mean, M2) together, instead of what was taken in."""
        self.count, self.mean, self.m2 = 0, None, None
        for part in parts:
            self._merge(*part)

    def over_images(self) -> Moments:
        """Those of all images together, for a norm over the frames of a group: (1, G)."""
        whole = Moments(self.groups)
        if self.mean is not None and self.m2 is not None:
            mean = self.mean.mean(dim=0, keepdim=True)
            between = (self.mean - mean).square().sum(dim=0, keepdim=True) * self.count
            whole._merge(self.count * len(self.mean), mean, self.m2.sum(dim=0, keepdim=True) + between)
        return whole

    def scale_shift(self, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The norm as y = x * scale + shift: two (B, C, 1, 1), from affine parameters (C,).

        They have the dtype of the parameters, float32 or better.
        """
        if self.mean is None or self.m2 is None:
            raise RuntimeError("moments: expected at least one strip, got none")
        repeats = weight.shape[0] // self.groups
        rstd = torch.rsqrt(self.m2 / self.count + eps).repeat_interleave(repeats, dim=1)  # (B, C)
        mean = self.mean.repeat_interleave(repeats, dim=1)
        scale = rstd * weight
        shift = bias - mean * scale
        return scale[:, :, None, None].to(weight.dtype), shift[:, :, None, None].to(weight.dtype)


def _parts(rows: Tensor) -> list[Tensor]:
    """The rows as they are, or for 16 bits, where a float32 copy is needed, in pieces of a bounded size."""
    if rows.dtype.itemsize > 2 or profile_of(rows.device.type).moments_in_16_bits:
        return [rows]
    row_elements = rows.shape[0] * rows.shape[1] * rows.shape[3]
    return list(rows.split(max(1, CHUNK_ELEMENTS // row_elements), dim=2))


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every (image, channel) of (B, C, n, W): two (B, C), float64 where there is any."""
    profile = profile_of(x.device.type)
    if not profile.channel_moments:
        x = x.float() if x.dtype.itemsize <= 2 else x
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
        return mean, variance
    if x.dtype.itemsize <= 2 and not profile.moments_in_16_bits:
        x = x.float()
    results = [_image_moments(image) for image in x.split(1)]
    return torch.cat([mean for mean, _ in results]), torch.cat([variance for _, variance in results])


def _image_moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Of (1, C, n, W)."""
    if (made := native_strips.channel_moments(image)) is not None:
        return made
    pixels = image.permute(0, 2, 3, 1)
    pixels = (pixels.flatten(1, 2) if pixels.is_contiguous() else pixels.flatten(1, 2).contiguous()).permute(0, 2, 1)
    means: list[Tensor] = []
    variances: list[Tensor] = []
    counts: list[int] = []
    at_once = profile_of(image.device.type).moment_pixels or pixels.shape[2]
    for part in pixels[:, :, None].split(at_once, dim=3):  # (1, C, 1, n)
        mean, variance = torch.batch_norm_update_stats(part, None, None, 0.0)
        means.append(mean)
        variances.append(variance)
        counts.append(part.shape[3])
    if len(counts) == 1:  # without the table of counts, for which a GPU would have to be waited for
        return means[0].double()[None], variances[0].double()[None]
    weight = torch.tensor(counts, dtype=torch.float64, device=image.device)[:, None] / sum(counts)  # (parts, 1)
    all_means = torch.stack(means).double()
    mean = (all_means * weight).sum(dim=0, keepdim=True)  # (1, C)
    spread = torch.stack(variances).double() + (all_means - mean).square()
    return mean, (spread * weight).sum(dim=0, keepdim=True)


def _merge_channels(mean: Tensor, m2: Tensor, count: int, groups: int) -> tuple[Tensor, Tensor]:
    """Channels of equal counts as groups: (B, C) -> (B, G)."""
    mean = mean.unflatten(1, (groups, -1))  # (B, G, C / G)
    m2 = m2.unflatten(1, (groups, -1))
    group_mean = mean.mean(dim=2)
    between = (mean - group_mean[:, :, None]).square().sum(dim=2) * count
    return group_mean, m2.sum(dim=2) + between
