"""Square crops: random ones that follow from a number alone, which batch has which, and those for judging.

Crop number n of a seed is the same whichever process makes it and whatever was made before: a resumed training sees
what an uninterrupted one would, and several processes see what one with a larger batch would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Sampler

from ..files.images import middle
from .photo_set import PhotoSet

Item = tuple[int, int, int]
"""(number of the crop in the whole training, number of the picture, side in pixels)."""


def generator_of(seed: int, number: int, stream: int = 0) -> torch.Generator:
    """The random numbers of one crop (stream 0) or of its latent (stream 1)."""
    mixed = (seed * 1_000_003 + 2 * number + stream) * 0x9E3779B97F4A7C15 & (2**64 - 1)
    return torch.Generator().manual_seed(mixed >> 32)  # the generator keeps 32 bits; the high ones are well mixed


class Timetable:
    """Which crops make which batch: stages (share of the training, side, crops per process) over all processes."""

    def __init__(self, stages: Sequence[tuple[float, int, int]], batches: int, processes: int = 1) -> None:
        self.batches, self.processes = batches, processes
        self._stages: list[tuple[int, int, int, int]] = []
        """(first batch, first crop, side, crops per batch and process)."""
        self.crops = 0
        """Of all batches and processes together."""
        starts = [round(share * batches) for share, _, _ in stages]
        for (_, side, count), first, end in zip(stages, starts, [*starts[1:], batches], strict=True):
            self._stages.append((first, self.crops, side, count))
            self.crops += (end - first) * count * processes

    def batch(self, number: int, process: int = 0) -> tuple[range, int]:
        """(numbers of the crops, side) of batch `number` in process `process`."""
        first, crop, side, count = next(stage for stage in reversed(self._stages) if stage[0] <= number)
        crop += ((number - first) * self.processes + process) * count
        return range(crop, crop + count), side

    def epochs(self, batches: int, pictures: int) -> int:
        """How often each of so many pictures has been seen in the first so many batches."""
        return self.batch(batches)[0].start // pictures


def batches_of(epochs: int, pictures: int, stages: Sequence[tuple[float, int, int]], processes: int = 1) -> int:
    """The batches in which every picture is seen `epochs` times, over all stages (share, crop, batch size)."""
    ends = [share for share, _, _ in stages[1:]] + [1.0]
    per_batch = sum((end - start) * size for (start, _, size), end in zip(stages, ends, strict=True)) * processes
    batches = math.ceil(epochs * pictures / per_batch - 1e-9)  # less than rounding makes of a whole number
    while Timetable(stages, batches, processes).crops < epochs * pictures:
        batches += 1  # the stages begin at whole batches
    return batches


class BatchItems(Sampler[list[Item]]):
    """The batches from number `start` on, for one process. Pictures come in a new order every time round."""

    def __init__(self, timetable: Timetable, pictures: int, seed: int, start: int = 0, process: int = 0) -> None:
        self.timetable, self.pictures, self.seed = timetable, pictures, seed
        self.start, self.process = start, process
        self._round, self._order = -1, torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return max(0, self.timetable.batches - self.start)

    def __iter__(self) -> Iterator[list[Item]]:
        for number in range(self.start, self.timetable.batches):
            crops, size = self.timetable.batch(number, self.process)
            yield [(crop, self._picture(crop), size) for crop in crops]

    def _picture(self, crop: int) -> int:
        turn, place = divmod(crop, self.pictures)
        if turn != self._round:
            generator = torch.Generator().manual_seed((self.seed * 7919 + turn) & 0xFFFFFFFF)
            self._round, self._order = turn, torch.randperm(self.pictures, generator=generator)
        return int(self._order[place])


class RandomCrops(Dataset[dict[str, Tensor]]):
    """{`key`: (C, size, size) in -1..1, "crop": its number} for an Item."""

    def __init__(
        self, photos: PhotoSet, seed: int, scales: Sequence[float] = (1.0,), flip: bool = True, key: str = "jpg"
    ) -> None:
        self.photos, self.seed, self.scales, self.flip, self.key = photos, seed, tuple(scales), flip, key

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        number, picture, size = item
        generator = generator_of(self.seed, number)
        photo = self.photos[picture]
        while photo is None:
            if self.photos.readable == 0:
                raise ValueError("data.train: expected pictures, got only files that cannot be read: name others")
            photo = self.photos[_draw(len(self.photos), generator)]
        return {self.key: random_crop(photo, size, self.scales, self.flip, generator), "crop": torch.tensor(number)}


def _draw(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(0, limit, (1,), generator=generator))


def random_crop(photo: Tensor, size: int, scales: Sequence[float], flip: bool, generator: torch.Generator) -> Tensor:
    """A random square of a (C, H, W) uint8 picture as (C, size, size) in -1..1, shrunk or enlarged where necessary."""
    shorter = min(photo.shape[1:])
    side = min(round(size * scales[_draw(len(scales), generator)]), shorter)
    top, left = (_draw(length - side + 1, generator) for length in photo.shape[1:])
    crop = photo[:, top : top + side, left : left + side].float() / 127.5 - 1
    if side != size:
        crop = functional.interpolate(crop[None], size=(size, size), mode="bilinear", antialias=True)[0]
    return crop.flip(2) if flip and _draw(2, generator) else crop


class CentreCrops(Dataset[Tensor]):
    """The middle of every readable picture, (C, h, w) in -1..1: sides up to `size`, multiples of `multiple`."""

    def __init__(self, photos: PhotoSet, size: int, multiple: int, limit: int | None = None) -> None:
        self.photos, self.size, self.multiple = photos, size, multiple
        self.count = len(photos) if limit is None else min(limit, len(photos))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        photo = self.photos[index]
        while photo is None:  # the next readable one, so that as many are judged as before
            if self.photos.readable == 0:
                raise ValueError("data.val: expected pictures, got only files that cannot be read: name others")
            index = (index + 1) % len(self.photos)
            photo = self.photos[index]
        return middle(photo, self.size, self.multiple)
