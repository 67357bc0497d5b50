"""What a training shows: its bar, training.json with settings and curve, and pictures of its reconstructions."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from ..files.atomic import atomic_path
from ..files.images import write_image
from .config import BEST

_LOSS_MEMORY = 0.98
_BOOST = 3.0
SAMPLE_SIDE = 128
"""Pixels along a sample of the prior, or the next smaller number of whole latent cells."""


class Record(Callback):
    """training.json: a row for every check, the loss in it a running mean; rows survive an interruption."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.rows: list[dict[str, float]] = []
        self._loss: float | None = None
        self._seconds, self._started = 0.0, time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Follow the loss."""
        value = float(outputs["loss"])
        self._loss = value if self._loss is None else _LOSS_MEMORY * self._loss + (1 - _LOSS_MEMORY) * value
        pl_module.log("step", float(pl_module.batches_done))  # what the loggers count by, also after an interruption

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """The same for the values of a check."""
        pl_module.log("step", float(pl_module.batches_done), sync_dist=trainer.world_size > 1)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the curve up to here, one row more; what a check has found is in it where there was one."""
        row = {"batch": pl_module.batches_done, "loss": self._loss or 0.0}
        row |= {key[4:]: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        row["minutes"] = self._elapsed() / 60
        self.rows.append({name: round(value, 4) for name, value in row.items()})
        if trainer.is_global_zero:
            text = json.dumps({"settings": self.settings, "curve": self.rows}, indent=1) + "\n"
            with atomic_path(self.path) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know."""
        return {"rows": self.rows, "loss": self._loss, "seconds": self._elapsed(), "settings": self.settings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.rows, self._loss = list(state_dict["rows"]), state_dict["loss"]
        self._seconds = state_dict["seconds"]


class Pictures(Callback):
    """At every check a grid of the first pictures: input, reconstruction, three times the difference; one row each.

    Beside it, of a model that can, as many samples of the prior: the same noise at every check.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self._rows: list[Tensor] = []
        self._samples: list[Tensor] = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first few."""
        if trainer.is_global_zero and outputs is not None:
            to_rgb: Any = getattr(pl_module, "to_rgb", partial(torch.clamp, min=-1, max=1))
            x, y = (outputs[name].detach().float() for name in ("inputs", "reconstructions"))
            for pair in zip(x, y, strict=True):
                if len(self._rows) < self.count:
                    self._rows.append(comparison(*(to_rgb(image[None])[0].cpu() for image in pair)))

    def draw_samples(self, trainer: Trainer, pl_module: Any) -> None:
        """Samples alone, where there is nothing to reconstruct."""
        trained = [module for module in pl_module.modules() if module.training]
        with torch.no_grad(), pl_module.finished():
            pl_module.eval()
            self.on_validation_epoch_end(trainer, pl_module)
        for module in trained:
            module.training = True
        self.on_validation_end(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw samples, with the averaged weights still in; in all processes, as each may hold a share of them."""
        if not hasattr(pl_module, "sample"):
            return
        side = max(SAMPLE_SIDE // pl_module.factor(), 1) * pl_module.factor()
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.count):
            image = pl_module.to_rgb(pl_module.sample(1, side, side, generator).float())[0].cpu()
            self._samples.append((image.clamp(-1, 1) + 1) / 2)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write them."""
        rows, self._rows = self._rows, []
        samples, self._samples = self._samples, []
        if rows:
            self._write(trainer, pl_module.batches_done, "reconstructions", stack(rows))
        if samples and trainer.is_global_zero:
            self._write(trainer, pl_module.batches_done, "samples", torch.cat(samples, dim=2))

    def _write(self, trainer: Trainer, batches: int, name: str, grid: Tensor) -> None:
        """A picture (3, H, W) in 0..1 as a file, and for TensorBoard."""
        ending = "" if name == "reconstructions" else f"_{name}"
        write_image(grid.permute(1, 2, 0), self.folder / f"{batches:08d}{ending}.png")
        for logger in trainer.loggers:
            board = getattr(logger, "experiment", None)
            if hasattr(board, "add_image"):
                board.add_image(f"val/{name}", grid, batches)  # pyright: ignore


def comparison(x: Tensor, y: Tensor) -> Tensor:
    """Two images (3, H, W) in -1..1 and their difference side by side: (3, H, 3 W) in 0..1."""
    difference = ((y - x) / 2 * _BOOST).abs()
    return torch.cat([(x + 1) / 2, (y.clamp(-1, 1) + 1) / 2, difference], dim=2).clamp(0, 1)


def stack(rows: list[Tensor]) -> Tensor:
    """Rows (3, H, W) of different sizes one above the other, black where they are narrower."""
    width = max(row.shape[2] for row in rows)
    return torch.cat([torch.nn.functional.pad(row, (0, width - row.shape[2])) for row in rows], dim=1)


class Progress(TQDMProgressBar):
    """Lightning's bar, counting as the training does and not from the last start."""

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


def unjudged_note(module: Any, drawn: bool) -> str:
    """Without pictures to judge: what a training will not leave, what it will, and what would bring the rest.

    Args:    drawn: whether `Pictures` are asked for.
    """
    missing = "no PSNR and SSIM" + (", no reconstructions" if drawn else "")
    sampled = drawn and hasattr(module, "sample")
    kept = "weights, curve of the loss and samples" if sampled else "weights and curve of the loss"
    watched, more = f" (model.params.monitor {module.monitor} has nothing to go by)", ""
    if module.monitor is None:
        watched, more = "", f", and for {BEST} model.params.monitor={module.logged_keys()[0]}, too"
    return (
        f"no pictures are given, hence {missing} and no {BEST}{watched}; checkpoint, {kept} are written all the same: "
        f"say data.val=FOLDER to have them{more}"
    )
