"""Square crops: random ones that follow from a number alone, and the deterministic one for judging.

Crop number n of a seed is the same whichever process makes it and whatever was made before: a resumed training sees
what an uninterrupted one would, and several processes see what one with a larger batch would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Stage:
    """Some batches of one kind."""

    first_batch: int
    first_crop: int
    size: int
    per_process: int


class Timetable:
    """Which crops make which batch: stages of crop and batch sizes, over all processes."""

    def __init__(self, stages: Sequence[tuple[float, int, int]], batches: int, processes: int = 1) -> None:
        self.batches, self.processes = batches, processes
        self._stages: list[Stage] = []
        for share, size, per_process in stages:
            first = round(share * batches)
            crop = 0
            if self._stages:
                last = self._stages[-1]
                crop = last.first_crop + (first - last.first_batch) * last.per_process * processes
            self._stages.append(Stage(first, crop, size, per_process))

    def batch(self, number: int, process: int = 0) -> tuple[range, int]:
        """(numbers of the crops, side) of batch `number` in process `process`."""
        stage = next(stage for stage in reversed(self._stages) if stage.first_batch <= number)
        first = stage.first_crop + (number - stage.first_batch) * stage.per_process * self.processes
        first += process * stage.per_process
        return range(first, first + stage.per_process), stage.size


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
    """{"jpg": (C, size, size) in -1..1, "crop": its number} for an Item."""

    def __init__(self, photos: PhotoSet, seed: int, scales: Sequence[float] = (1.0,), flip: bool = True) -> None:
        self.photos, self.seed, self.scales, self.flip = photos, seed, tuple(scales), flip

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        number, picture, size = item
        generator = generator_of(self.seed, number)
        photo = self.photos[picture]
        while photo is None:
            if self.photos.readable == 0:
                raise ValueError("data.train: expected pictures, got only files that cannot be read: name others")
            photo = self.photos[_draw(len(self.photos), generator)]
        return {"jpg": random_crop(photo, size, self.scales, self.flip, generator), "crop": torch.tensor(number)}


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
