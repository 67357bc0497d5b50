"""The best score of a training so far: in the header of its weights, for people in a file, and in its checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only
from safetensors import SafetensorError, safe_open

from ..files.atomic import atomic_path
from .config import BEST, SCORE

_LARGER_IS_BETTER = ("val/psnr", "val/ssim", "val/ms_ssim")
_FIELD = "exact_vae.score"


class Best:
    """The score of `best.safetensors`.

    It stands in the header of that file, so that both are of the same weights wherever a training is killed. A training
    that goes on from an older checkpoint takes it from there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.monitor: str | None = None
        self.value: float | None = None

    def is_beaten(self, monitor: str, value: float) -> bool:
        """Whether this value is at least as good; it is the best one then. What is not finite never is."""
        known = None if self.monitor not in (None, monitor) else self.value
        sign = 1 if monitor in _LARGER_IS_BETTER else -1
        if not math.isfinite(value) or (known is not None and sign * value < sign * known):
            return False
        self.monitor, self.value = monitor, value
        return True

    def header(self) -> dict[str, str]:
        """What the file of the best weights says of them."""
        return {_FIELD: json.dumps(self.state_dict())}

    @rank_zero_only
    def write(self) -> None:
        """The score for people, when the weights are written."""
        with atomic_path(self.folder / SCORE) as temporary:
            temporary.write_text(json.dumps(self.state_dict()) + "\n", encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """The logged value and its name."""
        return {"monitor": self.monitor, "value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back, or what the files say, which may be newer."""
        if "best" in state_dict:  # in older checkpoints, where losses had a minus
            score = state_dict["best"]
            state_dict = {"monitor": None, "value": None if score is None else abs(score)}
        stored = self._read() or state_dict
        self.monitor, self.value = stored["monitor"], stored["value"]

    def _read(self) -> dict[str, Any] | None:
        """What the weights say; those of older trainings say nothing, but there is a file beside them."""
        try:
            opened: Any = safe_open(str(self.folder / BEST), framework="pt")
            text = (opened.metadata() or {}).get(_FIELD)
        except (OSError, SafetensorError):
            text = None
        try:
            stored = json.loads(text or (self.folder / SCORE).read_text(encoding="utf-8"))
            return {"monitor": str(stored["monitor"]), "value": float(stored["value"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def agree(self, trainer: Trainer) -> None:
        """All processes go by what the first one has read."""
        if trainer.world_size > 1:
            self.monitor, self.value = trainer.strategy.broadcast((self.monitor, self.value))
