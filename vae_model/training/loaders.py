"""The crops of a training as batches for Lightning."""

from __future__ import annotations

import signal
from typing import Any

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from .config import FALLBACK_CROP, DataSection
from .crops import BatchItems, CentreCrops, RandomCrops, Timetable
from .photo_set import PhotoSet


def stages_of(section: DataSection) -> tuple[tuple[float, int, int], ...]:
    """The stages of crop and batch sizes, also where there is one only."""
    return section.stages or ((0.0, section.crop or FALLBACK_CROP, section.batch_size),)


class ResumableLoader(DataLoader[dict[str, Tensor]]):
    """Says to Lightning that it starts where it should; the batch number is in the module."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing beyond the batch number."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do."""


class Photographs(LightningDataModule):
    """Random crops for training and centre crops for judging."""

    def __init__(self, section: DataSection, train: PhotoSet, val: PhotoSet | None, multiple: int, seed: int) -> None:
        super().__init__()
        self.section, self.train, self.val = section, train, val
        self.multiple, self.seed = multiple, seed

    def train_dataloader(self) -> ResumableLoader:
        """From the batch on that comes next."""
        trainer: Any = self.trainer
        module: Any = trainer.lightning_module
        timetable = Timetable(stages_of(self.section), module.total_batches, trainer.world_size)
        items = BatchItems(timetable, len(self.train), self.seed, module.batches_done, trainer.global_rank)
        crops = RandomCrops(self.train, self.seed, self.section.scales, self.section.flip)
        return ResumableLoader(
            crops,
            batch_sampler=items,
            num_workers=self.section.workers,
            persistent_workers=self.section.workers > 0,
            worker_init_fn=_leave_signals_to_the_parent,
        )

    def val_dataloader(self) -> DataLoader[Tensor] | list[Any]:
        """One picture at a time: their sizes differ."""
        if self.val is None:
            return []
        crops = CentreCrops(self.val, self.section.val_crop or FALLBACK_CROP, self.multiple, self.section.val_limit)
        return DataLoader(crops, batch_size=1)


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the readers go on until the training is saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
