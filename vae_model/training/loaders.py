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


class Photographs(LightningDataModule):
    """Random crops for training and centre crops for judging."""

    def __init__(self, section: DataSection, train: PhotoSet, val: PhotoSet | None, multiple: int, seed: int) -> None:
        super().__init__()
        self.section, self.train, self.val = section, train, val
        self.multiple, self.seed = multiple, seed

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """From the batch on that comes next, by the number that the module has."""
        trainer: Any = self.trainer
        module: Any = trainer.lightning_module
        timetable = Timetable(self.section.all_stages, module.total_batches, trainer.world_size)
        items = BatchItems(timetable, len(self.train), self.seed, module.batches_done, trainer.global_rank)
        crops = RandomCrops(self.train, self.seed, self.section.scales, self.section.flip, module.input_key)
        return DataLoader(
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
