"""Checkpoints that a full disk cannot spoil, the Ctrl-C that saves one, the weights and the best weights."""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from safetensors import SafetensorError, safe_open

from ..checkpoint.save import save
from ..errors.listed import some
from ..files.atomic import atomic_path, remove_leftovers
from ..files.dtypes import DTYPES
from .config import BEST, LAST, SCORE
from .divergence import DivergedError, broken
from .trained import Trained

logger = logging.getLogger(__name__)

_LARGER_IS_BETTER = ("val/psnr", "val/ssim", "val/ms_ssim")
_SCORE_FIELD = "exact_vae.score"

Epochs = Callable[[int], int]
"""Whole epochs in the first so many batches."""


def is_due(done: int, total: int, every: int, accumulate: int = 1, epochs: Epochs | None = None) -> bool:
    """Whether there is a check after `done` batches.

    At the end always; else at the first complete step (of `accumulate` batches) that has reached a multiple of `every`
    batches or, where `epochs` is given, the end of one.
    """
    if done == total:
        return True
    if done % accumulate:
        return False
    before = done - accumulate
    return done // every > before // every or (epochs is not None and epochs(done) > epochs(before))


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

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read it; nothing in it is run, whatever is asked for."""
        return torch.load(path, map_location=map_location, weights_only=True)


def beats(score: Mapping[str, Any], monitor: str, value: float) -> bool:
    """Whether a value is at least as good as the best score so far. What is not finite never is."""
    known = None if score["monitor"] not in (None, monitor) else score["value"]
    sign = 1 if monitor in _LARGER_IS_BETTER else -1
    return math.isfinite(value) and (known is None or sign * value >= sign * known)


def _read_score(folder: Path) -> dict[str, Any] | None:
    """What the best weights say; those of older trainings say nothing, but there is a file beside them."""
    try:
        opened: Any = safe_open(str(folder / BEST), framework="pt")
        text = (opened.metadata() or {}).get(_SCORE_FIELD)
    except (OSError, SafetensorError):
        text = None
    try:
        stored = json.loads(text or (folder / SCORE).read_text(encoding="utf-8"))
        return {"monitor": str(stored["monitor"]), "value": float(stored["value"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Checkpoints(Callback):
    """Says when there is a check, writes `last.ckpt`, the weights and the best weights, and ends a training early.

    It is the last of the callbacks, so that the checkpoint knows of the whole check: a training that is killed in the
    middle of one makes the batches before it again, and the check. The first Ctrl-C (or SIGTERM) ends the training at
    the next complete step, the second at once.

    Args:    every, epochs: when there is a check, as in `is_due`.
             max_minutes: after which the training ends, with a check.
    """

    def __init__(
        self,
        folder: Path,
        weights: str,
        dtype: str,
        every: int,
        max_minutes: float | None = None,
        epochs: Epochs | None = None,
    ) -> None:
        self.folder, self.weights, self.dtype, self.every, self.epochs = folder, weights, DTYPES[dtype], every, epochs
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.interrupted = False
        self.unjudged: list[Callable[[Trainer, Any], None]] = []
        """What is called in the place of a check where there are no pictures to judge."""
        self.saved_after: int | None = None
        """The number of batches in the files, where this run or the one that it goes on from has written any."""
        self._score: dict[str, Any] = {"monitor": None, "value": None}
        """Of the best weights. It stands in the header of their file, so that both are of the same weights wherever a
        training is killed; in a file for people; and in the checkpoint."""
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Listen to the signals that end a training; instead of Lightning, which on SIGTERM ends it without saving."""
        if trainer.world_size > 1:  # all go by what the first one has read
            self._score = trainer.strategy.broadcast(self._score)
        if trainer.is_global_zero:
            for folder in (self.folder, self.folder / "images"):
                remove_leftovers(folder)
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
        done, accumulate = pl_module.batches_done, pl_module.accumulate
        due = is_due(done, pl_module.total_batches, self.every, accumulate, self.epochs)
        late = self.deadline is not None and time.monotonic() > self.deadline
        stop = _any(trainer, self.interrupted or late) and done % accumulate == 0
        hurried = stop and not due and _any(trainer, self.interrupted)  # who interrupts does not want to wait
        trainer.should_stop = trainer.should_stop or stop
        if hurried:
            trainer.limit_val_batches = 0
        trainer.val_check_batch = 1 if due or stop else math.inf  # of every 1 batch, or the last alone
        if due or stop:
            require_sound(trainer, pl_module, self.dtype)
            if not trainer.enable_validation:
                for write in () if hurried else self.unjudged:
                    write(trainer, pl_module)
                self.save(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """A check is through."""
        self.keep_best(trainer, pl_module)
        self.save(trainer, pl_module)

    def keep_best(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep the best weights, if these are."""
        value = trainer.callback_metrics.get(pl_module.monitor or "")
        if value is None or not beats(self._score, pl_module.monitor, float(value)):
            return
        self._score = {"monitor": pl_module.monitor, "value": float(value)}
        text = json.dumps(self._score)
        self.export(trainer, pl_module, BEST, {_SCORE_FIELD: text})
        if trainer.is_global_zero:
            with atomic_path(self.folder / SCORE) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")

    def save(self, trainer: Trainer, pl_module: Trained) -> None:
        """Write the full checkpoint and the weights."""
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        self.export(trainer, pl_module, self.weights)
        self.saved_after = pl_module.batches_done

    def export(self, trainer: Trainer, pl_module: Trained, name: str, header: Mapping[str, str] | None = None) -> None:
        """Write the weights, the averaged ones where there are any, for every loader."""
        with pl_module.finished() as model:
            if trainer.is_global_zero:
                save(model, self.folder / name, dtype=self.dtype, header=header)
        trainer.strategy.barrier()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Leave Lightning's counters behind: they know only how to finish the training that wrote them, not a longer
        one. All that a training needs follows from the number of batches."""
        checkpoint.pop("loops", None)
        self.saved_after = pl_module.batches_done

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know."""
        return self._score

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back, or what the files say, which may be newer."""
        if "best" in state_dict:  # in older checkpoints, where losses had a minus
            score = state_dict["best"]
            state_dict = {"monitor": None, "value": None if score is None else abs(score)}
        self._score = _read_score(self.folder) or {name: state_dict[name] for name in self._score}


def _any(trainer: Trainer, here: bool) -> bool:
    """Whether it holds in any process."""
    return trainer.strategy.reduce_boolean_decision(here, all=False) if trainer.world_size > 1 else here


def require_sound(trainer: Trainer, pl_module: Any, dtype: torch.dtype) -> None:
    """DivergedError where a weight, an average or the discriminator is not finite, or is too large for the files."""
    state = pl_module.state_dict()
    tensors = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    written = [name for name in tensors if not name.startswith("loss.")]
    found = broken(tensors, dict.fromkeys(written, torch.finfo(dtype).max))
    if _any(trainer, bool(found)):
        lost = not found or any(name.startswith(("nan", "inf")) for name in found)
        raise DivergedError(
            f"training: expected finite weights that fit into output.dtype, got {some(found) or 'others elsewhere'} "
            f"after batch {pl_module.batches_done} of {pl_module.total_batches}: lower optimizer.lr "
            f"({pl_module.settings.lr:g}), or {'raise optimizer.warm_up' if lost else 'write bfloat16 or float32'}"
        )
