"""The progress bar of a training: from the first batch of the whole, also when it goes on from a checkpoint."""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Lightning's, counting as the training does and not from the last start."""

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin where the training does."""
        super().on_train_epoch_start(trainer, *_)
        module: Any = trainer.lightning_module
        self.train_progress_bar.total = module.total_batches
        self.train_progress_bar.initial = module.batches_done
        self.train_progress_bar.set_description("Training")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """One batch more."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, pl_module.batches_done - 1)
