"""The last line of a training: the figures of its last check, and where the others stand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .config import BEST, SCORE

_DECIMALS = {"psnr": ("{:.2f} dB", "PSNR"), "ssim": ("{:.4f}", "SSIM")}


def judged_line(folder: Path, names: Sequence[str]) -> str | None:
    """The line about the last check in `folder`, of its training.json and best.json; None where nothing was judged.

    Args:    names: the values to name, as they are logged, such as "val/psnr".
    """
    keys = [name.removeprefix("val/") for name in dict.fromkeys(names)]
    rows = [row for row in _read(folder / "training.json").get("curve", []) if any(key in row for key in keys)]
    if not rows:
        return None
    found = ", ".join(_told(key, rows[-1][key]) for key in keys if key in rows[-1])
    best = _read(folder / SCORE)
    if best and (folder / BEST).is_file():
        found += f"; {BEST} has {_told(str(best['monitor']).removeprefix('val/'), best['value'])}"
    return f"judged after batch {rows[-1]['batch']}: {found}; every check stands in {folder / 'training.json'}"


def _told(key: str, value: float) -> str:
    form, name = _DECIMALS.get(key, ("{:.4g}", key))
    return f"{name} {form.format(value)}"


def _read(path: Path) -> Mapping[str, Any]:
    """A file of this training; nothing where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
