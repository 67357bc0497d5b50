"""Checkpoints that a full disk cannot spoil, the Ctrl-C that saves one, and the weights for everybody else."""

from __future__ import annotations

import logging
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ..files.atomic import atomic_path
from ..save import save
from .trained import Trained

logger = logging.getLogger(__name__)

LAST = "last.ckpt"
BEST = "best.safetensors"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LARGER_IS_BETTER = ("val/psnr", "val/ssim", "val/ms_ssim")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint and replaces it at the end; when that fails the old one is still there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; OSError in one line where it cannot be written."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_path(target) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise OSError(
                f"checkpoint: expected to write {target}, got {reason}: make room; the checkpoint before is untouched"
            ) from error


class Checkpoints(Callback):
    """Saves `last.ckpt` and the weights at every check, when the time is over and when the user interrupts.

    The first Ctrl-C (or SIGTERM) ends the training at the next complete step, the second at once.
    """

    def __init__(self, folder: Path, weights: str, dtype: str, every: int, max_minutes: float | None = None) -> None:
        self.folder, self.weights, self.dtype, self.every = folder, weights, _DTYPES[dtype], every
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.interrupted = False
        self._best: float | None = None
        self._handlers: dict[int, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Listen to the signals that end a training."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._interrupt)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        logger.warning("interrupted: saving after this step; once more to stop at once")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """At complete steps only: gradients that wait for more batches are in no checkpoint."""
        done, complete = pl_module.batches_done, pl_module.batches_done % pl_module.accumulate == 0
        late = self.deadline is not None and time.monotonic() > self.deadline
        wants = self.interrupted or late
        if trainer.world_size > 1:
            wants = trainer.strategy.reduce_boolean_decision(wants, all=False)
        if complete and wants:
            trainer.should_stop = True
            if not late:
                trainer.limit_val_batches = 0  # who interrupts does not want to wait for a check
        if (complete and wants) or done % self.every == 0 or done == pl_module.total_batches:
            self.save(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """The same checkpoint again, now with what was found out; and the best weights, if these are."""
        if trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(pl_module.monitor or "")
        if value is None:
            return
        score = float(value) if pl_module.monitor in _LARGER_IS_BETTER else -float(value)
        if self._best is None or score > self._best:
            self._best = score
            self.export(trainer, pl_module, BEST)

    def save(self, trainer: Trainer, pl_module: Trained) -> None:
        """Write the full checkpoint and the weights."""
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        self.export(trainer, pl_module, self.weights)

    def export(self, trainer: Trainer, pl_module: Trained, name: str) -> None:
        """Write the weights, the averaged ones where there are any, for every loader."""
        with pl_module.finished() as model:
            if trainer.is_global_zero:
                save(model, self.folder / name, dtype=self.dtype)
        trainer.strategy.barrier()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self._best = state_dict["best"]
